// See product.h and block_product.h.

#include "quantized_linear/block_product.h"

namespace quantized {

template <class Number, class Out>
void multiply_block(const linear::Product<Number>& product, const Matrix<Number>& matrix, Out* out, int64_t block) {
    if (matrix.format == kInt8)
        BlockProduct<Number, Out, kInt8>(product, matrix, out, block).run();
    else
        BlockProduct<Number, Out, kInt4>(product, matrix, out, block).run();
}

template void multiply_block(const linear::Product<float>&, const Matrix<float>&, float*, int64_t);
template void multiply_block(const linear::Product<Bf16>&, const Matrix<Bf16>&, float*, int64_t);
template void multiply_block(const linear::Product<Bf16>&, const Matrix<Bf16>&, Bf16*, int64_t);
template void unpack_row(const Matrix<float>&, int64_t, int64_t, float*);
template void unpack_row(const Matrix<Bf16>&, int64_t, int64_t, Bf16*);

}  // namespace quantized

#define KVASIR_QUANTIZED_LINEAR(suffix, Number)                                                                       \
    extern "C" void kvasir_quantized_linear_##suffix(                                                                 \
        const Number* x, int64_t x_stride, const uint8_t* packed, const Bf16* scales, int64_t format,                 \
        int64_t group_size, const Number* bias, int64_t num_rows, int64_t num_inputs, int64_t num_outputs, void* out, \
        int64_t is_wide, int64_t thread_limit) {                                                                      \
        const linear::Product<Number> product{x, x_stride, nullptr, bias, num_rows, num_inputs, num_outputs};         \
        const quantized::Matrix<Number> matrix{packed, scales, format, group_size};                                   \
        OwnThreads threads{thread_limit};                                                                             \
        if (is_wide)                                                                                                  \
            quantized::multiply(product, matrix, static_cast<float*>(out), threads);                                  \
        else                                                                                                          \
            quantized::multiply(product, matrix, static_cast<Number*>(out), threads);                                 \
    }                                                                                                                 \
    extern "C" void kvasir_pack_quantized_##suffix(const int8_t* codes, int64_t num_outputs, int64_t num_inputs,      \
                                                   int64_t format, uint8_t* packed, int64_t thread_limit) {           \
        OwnThreads threads{thread_limit};                                                                             \
        quantized::pack<Number>(codes, num_outputs, num_inputs, format, packed, threads);                             \
    }                                                                                                                 \
    extern "C" void kvasir_unpack_quantized_rows_##suffix(                                                            \
        const uint8_t* packed, const Bf16* scales, int64_t format, int64_t group_size, int64_t num_inputs,            \
        const int64_t* rows, int64_t num_rows, Number* out, int64_t) {                                                \
        const quantized::Matrix<Number> matrix{packed, scales, format, group_size};                                   \
        for (int64_t i = 0; i < num_rows; ++i)                                                                        \
            quantized::unpack_row(matrix, num_inputs, rows[i], out + i * num_inputs);                                 \
    }

KVASIR_QUANTIZED_LINEAR(float32, float)
KVASIR_QUANTIZED_LINEAR(bfloat16, Bf16)
