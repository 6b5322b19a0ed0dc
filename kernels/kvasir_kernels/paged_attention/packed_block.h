// Keys and values of a block of one head, in the order in which many rows read them fastest:
//
//   keys     [D / step][64][step]      16 keys' scores are sums of products, without adding up lanes
//   values   [64 / step][D][step]      of bfloat16 alone: as many products at once as of keys
//
// A step is one number of float32 and two of bfloat16, whose weights are rounded to it.
#pragma once

#include <type_traits>

#include "linear/product.h"
#include "paged_attention/pages.h"

namespace attention {

template <class Number>
using Products = linear::Step<Number>;

// Rows and columns of 16 x 16 words change places: each stage exchanges lanes so far apart between rows so far apart.
#define KVASIR_EXCHANGE(distance, FIRST, SECOND)                                                                      \
    KVASIR_UNROLL                                                                                                     \
    for (int i = 0; i < kLanes; ++i)                                                                                  \
        if (!(i & distance)) {                                                                                        \
            const Words upper = rows[i], lower = rows[i + distance];                                                  \
            rows[i] = __builtin_shufflevector(upper, lower, FIRST);                                                   \
            rows[i + distance] = __builtin_shufflevector(upper, lower, SECOND);                                       \
        }
#define KVASIR_LANES(...) __VA_ARGS__

inline void transpose(Words* rows) {
    KVASIR_EXCHANGE(1, KVASIR_LANES(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
                    KVASIR_LANES(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    KVASIR_EXCHANGE(2, KVASIR_LANES(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
                    KVASIR_LANES(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    KVASIR_EXCHANGE(4, KVASIR_LANES(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
                    KVASIR_LANES(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    KVASIR_EXCHANGE(8, KVASIR_LANES(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
                    KVASIR_LANES(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
}

// A row's weights in place, as the first half of their memory.
inline void round_weights(float* weights) {
    Bf16* rounded = reinterpret_cast<Bf16*>(weights);
    for (int64_t k = 0; k < kBlockKeys; k += kLanes) store(rounded + k, load(weights + k));
}

template <class Number>
class PackedBlock {
  public:
    static constexpr bool kPacksValues = std::is_same_v<Number, Bf16>;

    static bool takes(int64_t head_dim) { return head_dim * sizeof(Number) % kLineBytes == 0; }

    // In floats.
    static int64_t memory_size(int64_t head_dim) {
        return (kPacksValues ? 2 : 1) * kBlockKeys * head_dim * sizeof(Number) / sizeof(float);
    }

    PackedBlock(float* memory, int64_t head_dim)
        : keys_(reinterpret_cast<Number*>(memory)), values_(keys_ + kBlockKeys * head_dim), head_dim_(head_dim) {}

    void pack(const Number* const* keys, const Number* const* values) {
        for (int64_t d = 0; d < head_dim_; d += kLanes * kInputs)
            for (int64_t k = 0; k < kBlockKeys; k += kLanes) {
                Words rows[kLanes];
                KVASIR_UNROLL
                for (int i = 0; i < kLanes; ++i) std::memcpy(&rows[i], keys[k + i] + d, sizeof rows[i]);
                transpose(rows);
                KVASIR_UNROLL
                for (int i = 0; i < kLanes; ++i)
                    std::memcpy(keys_ + (d + i * kInputs) * kBlockKeys + k * kInputs, &rows[i], sizeof rows[i]);
            }
        if constexpr (kPacksValues)
            for (int64_t k = 0; k < kBlockKeys; k += 2)
                for (int64_t d = 0; d < head_dim_; d += kLanes) {
                    // Widened, a number stands in the upper half of its word.
                    const Words first = (Words)load(values[k] + d), second = (Words)load(values[k + 1] + d);
                    const Words both = first >> 16 | second;
                    std::memcpy(values_ + k * head_dim_ + 2 * d, &both, sizeof both);
                }
    }

    // Scores of kRows queries [.., D] with all keys, each row kBlockKeys after the other.
    template <int kRows>
    void score(const Number* query, float scale, float* scores) const {
        constexpr int kVectors = kBlockKeys / kLanes;
        Floats totals[kRows][kVectors] = {};
        for (int64_t d = 0; d < head_dim_; d += kInputs)
            add_products<kRows, kVectors>(totals, query + d, head_dim_, keys_ + d * kBlockKeys);
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r)
            KVASIR_UNROLL
            for (int v = 0; v < kVectors; ++v) store(scores + r * kBlockKeys + v * kLanes, totals[r][v] * scale);
    }

    // sums [kRows, D] = sums * kept[row] + rounded weights [kRows, keys] x values [keys, D]; fetches as much ahead.
    template <int kRows>
    void add_values(const float* weights, const float* kept, int64_t num_keys, float* sums,
                    Ahead<Number>& ahead) const {
        int64_t d = 0;
        for (; d + 4 * kLanes <= head_dim_; d += 4 * kLanes)
            add_tile<kRows, 4>(weights, kept, num_keys, d, sums, ahead);
        for (; d < head_dim_; d += 2 * kLanes) add_tile<kRows, 2>(weights, kept, num_keys, d, sums, ahead);
    }

  private:
    static constexpr int kInputs = Products<Number>::kInputs;

    template <int kRows, int kVectors>
    static void add_products(Floats (&totals)[kRows][kVectors], const Number* x, int64_t x_stride,
                             const Number* packed) {
        typename Products<Number>::Operand operands[kVectors];
        KVASIR_UNROLL
        for (int v = 0; v < kVectors; ++v) operands[v] = Products<Number>::operand(packed + v * kLanes * kInputs);
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r)
            KVASIR_UNROLL
            for (int v = 0; v < kVectors; ++v)
                totals[r][v] = Products<Number>::add(totals[r][v], x + r * x_stride, operands[v]);
    }

    template <int kRows, int kVectors>
    void add_tile(const float* weights, const float* kept, int64_t num_keys, int64_t first, float* sums,
                  Ahead<Number>& ahead) const {
        constexpr int64_t kWeightStride = kBlockKeys * sizeof(float) / sizeof(Number);
        Floats totals[kRows][kVectors];
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r)
            KVASIR_UNROLL
            for (int v = 0; v < kVectors; ++v)
                totals[r][v] = load(sums + r * head_dim_ + first + v * kLanes) * kept[r];
        for (int64_t k = 0; k < num_keys; k += kInputs) {
            ahead.template fetch<2 * kInputs * kVectors * kLanes * sizeof(Number) / kLineBytes>();
            add_products<kRows, kVectors>(totals, reinterpret_cast<const Number*>(weights) + k, kWeightStride,
                                          values_ + k * head_dim_ + first * kInputs);
        }
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r)
            KVASIR_UNROLL
            for (int v = 0; v < kVectors; ++v) store(sums + r * head_dim_ + first + v * kLanes, totals[r][v]);
    }

    Number *keys_, *values_;
    int64_t head_dim_;
};

}  // namespace attention
