// See product.h.

#include "linear/product.h"

using namespace linear;

#define KVASIR_LINEAR(suffix, Number)                                                                                 \
    extern "C" void kvasir_linear_##suffix(const Number* x, int64_t x_stride, const Number* packed,                   \
                                           const Number* bias, int64_t num_rows, int64_t num_inputs,                  \
                                           int64_t num_outputs, void* out, int64_t is_wide, int64_t thread_limit) {   \
        const Product<Number> product{x, x_stride, packed, bias, num_rows, num_inputs, num_outputs};                  \
        OwnThreads threads{thread_limit};                                                                             \
        if (is_wide)                                                                                                  \
            multiply(product, static_cast<float*>(out), threads);                                                     \
        else                                                                                                          \
            multiply(product, static_cast<Number*>(out), threads);                                                    \
    }                                                                                                                 \
    extern "C" void kvasir_pack_##suffix(const Number* weight, int64_t num_outputs, int64_t num_inputs,               \
                                         Number* packed, int64_t thread_limit) {                                      \
        pack(weight, num_outputs, num_inputs, packed, thread_limit);                                                  \
    }                                                                                                                 \
    extern "C" void kvasir_unpack_rows_##suffix(const Number* packed, int64_t num_inputs, const int64_t* rows,        \
                                                int64_t num_rows, Number* out) {                                      \
        for (int64_t i = 0; i < num_rows; ++i)                                                                        \
            unpack_row(packed, num_inputs, rows[i], out + i * num_inputs);                                            \
    }

KVASIR_LINEAR(float32, float)
KVASIR_LINEAR(bfloat16, Bf16)
