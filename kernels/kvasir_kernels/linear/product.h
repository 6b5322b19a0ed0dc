// A few rows times a large matrix, whose rows are packed so that they are read from memory once and in order.
//
//   float32     [O / 32][E][32]           bfloat16    [O / 32][E / 2][32][2]
//
// 32 outputs lie side by side for one input (or two: what VDPBF16PS takes at once). The last block is padded with 0.

#pragma once

#include "native/sharing.h"

namespace linear {

constexpr int kBlock = 2 * kLanes;

#ifdef __AVX512F__
constexpr int kMaxRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kMaxRows = 3;
#endif

// One step through the inputs: float32 takes one at a time, bfloat16 two. An operand: their weights for 16 outputs.
template <class Number>
struct Step;

template <>
struct Step<float> {
    using Operand = Floats;
    static constexpr int kInputs = 1;
    static Operand operand(const float* weights) { return load(weights); }
    static Floats add(Floats total, const float* x, Operand weights) { return total + weights * x[0]; }
};

template <>
struct Step<Bf16> {
    using Operand = Words;
    static constexpr int kInputs = 2;
    static Operand operand(const Bf16* weights) {
        Words both;
        std::memcpy(&both, weights, sizeof both);
        return both;
    }
    static Floats add(Floats total, const Bf16* x, Operand both) {
        uint32_t pair;
        std::memcpy(&pair, x, sizeof pair);
#ifdef __AVX512BF16__
        const __m512i pairs = _mm512_set1_epi32(static_cast<int>(pair));
        return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)both);
#else
        const Words first = both << 16, second = both & 0xffff0000u;
        const Floats x_first = (Floats)(Words{} + (pair << 16)), x_second = (Floats)(Words{} + (pair & 0xffff0000u));
        return total + (Floats)first * x_first + (Floats)second * x_second;
#endif
    }
};

template <class Number>
struct Product {
    const Number* x;  // [T, E], rows x_stride apart
    int64_t x_stride;
    const Number* packed;
    const Number* bias;  // [O] or null
    int64_t num_rows, num_inputs, num_outputs;
};

template <class Number, class Out>
void write(Out* out, Floats values, const Number* bias, int64_t count) {
    if (count >= kLanes) {
        store(out, bias ? values + load(bias) : values);
    } else if (count > 0) {
        store_part(out, bias ? values + load_part(bias, count) : values, count);
    }
}

// Adds the products of each row's next inputs with their weights in a block.
template <int kRows, class Number>
inline void add_step(Floats (&sums)[kRows][2], const Number* x, int64_t x_stride, const Number* weights) {
    constexpr int kHalf = kLanes * Step<Number>::kInputs;
    const typename Step<Number>::Operand operands[2] = {Step<Number>::operand(weights),
                                                        Step<Number>::operand(weights + kHalf)};
    KVASIR_UNROLL
    for (int r = 0; r < kRows; ++r)
        KVASIR_UNROLL
        for (int half = 0; half < 2; ++half)
            sums[r][half] = Step<Number>::add(sums[r][half], x + r * x_stride, operands[half]);
}

template <int kRows, class Number, class Out>
inline void write_rows(const Product<Number>& product, Out* out, int64_t block, int64_t row,
                       const Floats (&totals)[kRows][2]) {
    KVASIR_UNROLL
    for (int r = 0; r < kRows; ++r)
        KVASIR_UNROLL
        for (int half = 0; half < 2; ++half) {
            const int64_t first = block * kBlock + half * kLanes;
            const Number* bias = product.bias ? product.bias + first : nullptr;
            write(out + (row + r) * product.num_outputs + first, totals[r][half], bias, product.num_outputs - first);
        }
}

// What is fetched from memory while tiles of rows are computed: the next block, evenly over all steps of all tiles. A
// block is read from memory by its first tile alone, which would wait for it, and from the cache by the others.
class Ahead {
  public:
    Ahead(const void* block, int64_t step_bytes, int64_t num_tiles)
        : next_(static_cast<const char*>(block)), step_bytes_(step_bytes / num_tiles) {}

    void fetch() {
        __builtin_prefetch(next_, 0, 2);
        if (step_bytes_ > kLineBytes) __builtin_prefetch(next_ + kLineBytes, 0, 2);
        next_ += step_bytes_;
    }

  private:
    static constexpr int64_t kLineBytes = 64;

    const char* next_;
    const int64_t step_bytes_;
};

template <int kRows, class Number, class Out>
void block_rows(const Product<Number>& product, Out* out, int64_t block, int64_t row, Ahead& ahead) {
    const Number* weights = product.packed + block * kBlock * product.num_inputs;
    const Number* x = product.x + row * product.x_stride;
    Floats totals[kRows][2] = {};
    for (int64_t i = 0; i < product.num_inputs; i += Step<Number>::kInputs, weights += kBlock * Step<Number>::kInputs) {
        if constexpr (kRows > 1) ahead.fetch();  // one row is no work: the processor foresees what it reads
        add_step<kRows, Number>(totals, x + i, product.x_stride, weights);
    }
    write_rows<kRows>(product, out, block, row, totals);
}

// The last rows are fewer than a full tile: find the tile of their number.
template <int kRows, class Number, class Out>
void rest_of_block(const Product<Number>& product, Out* out, int64_t block, int64_t row, Ahead& ahead) {
    if constexpr (kRows > 0) {
        if (product.num_rows - row == kRows)
            block_rows<kRows>(product, out, block, row, ahead);
        else
            rest_of_block<kRows - 1>(product, out, block, row, ahead);
    }
}

template <class Number, class Out, class Share>
void multiply(const Product<Number>& product, Out* out, Share& share) {
    const int64_t num_blocks = (product.num_outputs + kBlock - 1) / kBlock;
    const int64_t work = num_blocks * kBlock * product.num_inputs * std::max<int64_t>(product.num_rows / 4, 1);
    share(num_blocks, work, [&](int64_t block) {
        constexpr int64_t kStepBytes = kBlock * Step<Number>::kInputs * sizeof(Number);
        const int64_t num_tiles = (product.num_rows + kMaxRows - 1) / kMaxRows;
        Ahead ahead(product.packed + (block + 1) * kBlock * product.num_inputs, kStepBytes, num_tiles);
        int64_t row = 0;
        for (; row + kMaxRows <= product.num_rows; row += kMaxRows)
            block_rows<kMaxRows>(product, out, block, row, ahead);
        rest_of_block<kMaxRows - 1>(product, out, block, row, ahead);
    });
}

template <class Number>
int64_t packed_index(int64_t output, int64_t input, int64_t num_inputs) {
    constexpr int kInputs = Step<Number>::kInputs;
    const int64_t block = output / kBlock, column = output % kBlock;
    return block * kBlock * num_inputs + (input / kInputs * kBlock + column) * kInputs + input % kInputs;
}

template <class Number>
void pack(const Number* weight, int64_t num_outputs, int64_t num_inputs, Number* packed, int64_t thread_limit) {
    constexpr int64_t kInputs = Step<Number>::kInputs, kLineInputs = 64 / sizeof(Number);
    const int64_t num_blocks = (num_outputs + kBlock - 1) / kBlock;
    for_each(num_blocks, threads_for(num_outputs * num_inputs, thread_limit), [&](int64_t block) {
        const int64_t first = block * kBlock, num_rows = std::min<int64_t>(kBlock, num_outputs - first);
        Number* to = packed + first * num_inputs;
        if (num_rows < kBlock) std::fill(to, to + kBlock * num_inputs, Number{});
        // A line of each row after the other: it is read whole, and where its numbers go stays in the first cache.
        for (int64_t input = 0; input < num_inputs; input += kLineInputs)
            for (int64_t row = 0; row < num_rows; ++row)
                for (int64_t i = input; i < std::min(input + kLineInputs, num_inputs); i += kInputs)
                    std::memcpy(to + i * kBlock + row * kInputs, weight + (first + row) * num_inputs + i,
                                kInputs * sizeof(Number));
    });
}

template <class Number>
void unpack_row(const Number* packed, int64_t num_inputs, int64_t row, Number* out) {
    constexpr int kInputs = Step<Number>::kInputs;
    const Number* from = packed + packed_index<Number>(row, 0, num_inputs);
    for (int64_t i = 0; i < num_inputs; i += kInputs, from += kBlock * kInputs)
        std::memcpy(out + i, from, kInputs * sizeof(Number));
}

}  // namespace linear
