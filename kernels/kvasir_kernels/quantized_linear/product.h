// Rows times a matrix of small integers, each group of whose inputs has a scale for each output. Integers of up to 8
// bits are exact in bfloat16, too: they are multiplied as they are, and a group's sum is scaled in float32. Four inputs
// of 32 outputs are a unit, and the blocks are those of linear/product.h:
//
//   8 bits    [O / 32][E / 4][128 bytes], -127 to 127        one scale for each output
//   4 bits    [O / 32][E / 4][64 bytes], -8 to 7 plus 8      one for each group of inputs and output
//
// A unit of 4 bits is one wide vector: its k-th nibbles are the operand of step k / 2 and half k % 2.
#pragma once

#include "linear/product.h"

namespace quantized {

enum Format : int64_t { kInt8 = 8, kInt4 = 4 };

template <class Number>
struct Matrix {
    const uint8_t* packed;
    const Bf16* scales;  // [O / 32][groups][32]
    int64_t format, group_size;
};

// Rows times a block of 32 outputs; compiled once, in kernel.cpp. product.packed is not read.
template <class Number, class Out>
void multiply_block(const linear::Product<Number>& product, const Matrix<Number>& matrix, Out* out, int64_t block);

template <class Number, class Out, class Share>
void multiply(const linear::Product<Number>& product, const Matrix<Number>& matrix, Out* out, Share& share) {
    const int64_t num_blocks = (product.num_outputs + linear::kBlock - 1) / linear::kBlock;
    const int64_t work = num_blocks * linear::kBlock * product.num_inputs * std::max<int64_t>(product.num_rows / 4, 1);
    share(num_blocks, work, [&](int64_t block) { multiply_block(product, matrix, out, block); });
}

// A row of the matrix, rounded to its activations' dtype; compiled once, too.
template <class Number>
void unpack_row(const Matrix<Number>& matrix, int64_t num_inputs, int64_t row, Number* out);

}  // namespace quantized
