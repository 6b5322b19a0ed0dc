// Attention that reads pages where they lie, with a running softmax (Milakov and Gimelshein, 2018; FlashAttention, Dao
// et al., 2022). A work item is some tokens of one sequence x some key heads x one span of keys:
//
//   blocks    64 keys at a time, for each key head: scores, softmax, and the weighted sum of their values; for several
//             tokens they are packed first
//   rows      the query heads that share a key head, of up to 64 / group tokens
//   spans     4096 keys: a long context is shared by threads, and its parts are joined at the end
//
// A single token is bound by memory, where all heads of a key lie side by side: its item has as many heads as leave
// work for all threads. Many tokens are bound by arithmetic: one head after the other, whose keys stay in the cache.
// Spans don't depend on the number of threads or on other sequences: a row's result is its own.

#pragma once

#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "native/sharing.h"
#include "paged_attention/packed_block.h"
#include "paged_attention/pages.h"

namespace attention {

constexpr int64_t kRowsPerItem = 64, kSpanKeys = 4096;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// The weighted sums of R rows, [R, D], each row's largest score so far, and the sum of its weights.
struct Sums {
    float *values, *largest, *total;

    Sums(float* memory, int64_t num_rows, int64_t head_dim)
        : values(memory), largest(memory + num_rows * head_dim), total(largest + num_rows) {}

    static int64_t size(int64_t num_rows, int64_t head_dim) { return num_rows * (head_dim + 2); }
};

// Lanes where i & distance come from b, the others from a: each plus its partner `distance` away.
#define KVASIR_FOLD(a, b, distance, ...) (__builtin_shufflevector(a, b, __VA_ARGS__) + KVASIR_PARTNERS_##distance(a, b))
#define KVASIR_PARTNERS_1(a, b) __builtin_shufflevector(a, b, 1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30)
#define KVASIR_PARTNERS_2(a, b) __builtin_shufflevector(a, b, 2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29)
#define KVASIR_PARTNERS_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27)
#define KVASIR_PARTNERS_8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)

// Lane i of the result is the sum of all lanes of terms[i].
inline Floats transposed_sum(Floats* terms) {
    KVASIR_UNROLL
    for (int i = 0; i < 8; ++i)
        terms[i] = KVASIR_FOLD(terms[2 * i], terms[2 * i + 1], 1, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31);
    KVASIR_UNROLL
    for (int i = 0; i < 4; ++i)
        terms[i] = KVASIR_FOLD(terms[2 * i], terms[2 * i + 1], 2, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31);
    KVASIR_UNROLL
    for (int i = 0; i < 2; ++i)
        terms[i] = KVASIR_FOLD(terms[2 * i], terms[2 * i + 1], 4, 0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31);
    return KVASIR_FOLD(terms[0], terms[1], 8, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Adds the products of pairs of numbers to terms[row * keys + key], and returns for how many numbers of a head.
template <int kRows>
inline int64_t add_pairs(const Bf16* query, const Bf16* const* keys, int64_t head_dim, Floats* terms) {
    int64_t d = 0;
#ifdef __AVX512BF16__
    constexpr int kKeys = kLanes / kRows;
    const auto pairs = [](const Bf16* from) { return (__m512bh)_mm512_loadu_si512(from); };
    for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
        __m512bh rows[kRows];
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r) rows[r] = pairs(query + r * head_dim + d);
        KVASIR_UNROLL
        for (int k = 0; k < kKeys; ++k) {
            const __m512bh key = pairs(keys[k] + d);
            KVASIR_UNROLL
            for (int r = 0; r < kRows; ++r)
                terms[r * kKeys + k] = (Floats)_mm512_dpbf16_ps((__m512)terms[r * kKeys + k], rows[r], key);
        }
    }
#endif
    return d;
}

template <int kRows>
inline int64_t add_pairs(const float*, const float* const*, int64_t, Floats*) {
    return 0;
}

// Scores of kRows queries [.., D] with 16 / kRows keys, each kBlockKeys apart in `scores`.
template <int kRows, class Number>
inline void score_tile(const Number* query, const Number* const* keys, int64_t head_dim, float scale, float* scores) {
    constexpr int kKeys = kLanes / kRows;
    Floats terms[kLanes] = {};
    for (int64_t d = add_pairs<kRows>(query, keys, head_dim, terms); d < head_dim; d += kLanes) {
        Floats rows[kRows];
        KVASIR_UNROLL
        for (int r = 0; r < kRows; ++r) rows[r] = load(query + r * head_dim + d);
        KVASIR_UNROLL
        for (int k = 0; k < kKeys; ++k) {
            const Floats key = load(keys[k] + d);
            KVASIR_UNROLL
            for (int r = 0; r < kRows; ++r) terms[r * kKeys + k] += rows[r] * key;
        }
    }
    float flat[kLanes];
    store(flat, transposed_sum(terms) * scale);
    KVASIR_UNROLL
    for (int r = 0; r < kRows; ++r) std::memcpy(scores + r * kBlockKeys, flat + r * kKeys, kKeys * sizeof(float));
}

template <int kRows, class Number>
inline void score_rows(const Number* query, const Number* const* keys, int64_t num_keys, int64_t head_dim, float scale,
                       float* scores) {
    for (int64_t k = 0; k < num_keys; k += kLanes / kRows)
        score_tile<kRows>(query, keys + k, head_dim, scale, scores + k);
}

// sums [kRows, D] = sums * kept[row] + weights [kRows, keys] x values [keys, D], for kVectors vectors of D.
template <int kRows, int kVectors, class Number>
inline void add_tile(const float* weights, const float* kept, const Number* const* values, int64_t num_keys,
                     int64_t head_dim, int64_t first, float* sums, Ahead<Number>& ahead) {
    constexpr int kLines = 2 * kVectors * kLanes * sizeof(Number) / kLineBytes;  // as much of a key and of a value
    Floats totals[kRows][kVectors];
    KVASIR_UNROLL
    for (int r = 0; r < kRows; ++r)
        KVASIR_UNROLL
        for (int v = 0; v < kVectors; ++v)
            totals[r][v] = load(sums + r * head_dim + first + v * kLanes) * kept[r];
    for (int64_t k = 0; k < num_keys; ++k) {
        ahead.template fetch<kLines>();
        KVASIR_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const Floats value = load(values[k] + first + v * kLanes);
            KVASIR_UNROLL
            for (int r = 0; r < kRows; ++r) totals[r][v] += value * weights[r * kBlockKeys + k];
        }
    }
    KVASIR_UNROLL
    for (int r = 0; r < kRows; ++r)
        KVASIR_UNROLL
        for (int v = 0; v < kVectors; ++v) store(sums + r * head_dim + first + v * kLanes, totals[r][v]);
}

template <int kRows, class Number>
inline void add_rows(const float* weights, const float* kept, const Number* const* values, int64_t num_keys,
                     int64_t head_dim, float* sums, Ahead<Number>& ahead) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes)
        add_tile<kRows, 4>(weights, kept, values, num_keys, head_dim, d, sums, ahead);
    for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes)
        add_tile<kRows, 2>(weights, kept, values, num_keys, head_dim, d, sums, ahead);
    for (; d < head_dim; d += kLanes) add_tile<kRows, 1>(weights, kept, values, num_keys, head_dim, d, sums, ahead);
}

// Turns a row's scores into weights, and returns by how much its sums so far shrink.
inline float soften(float* scores, float& largest, float& total) {
    Floats highest_lanes = splat(largest);
    for (int64_t k = 0; k < kBlockKeys; k += kLanes) highest_lanes = larger(highest_lanes, load(scores + k));
    const float highest = ::largest(highest_lanes);
    const float base = highest == kHidden ? 0.0f : highest;  // nothing seen yet: -inf less -inf would be NaN
    Floats added = {};
    for (int64_t k = 0; k < kBlockKeys; k += kLanes) {
        const Floats weights = exponential(load(scores + k) - base);
        store(scores + k, weights);
        added += weights;
    }
    const float kept = largest == highest ? 1.0f : exponential(splat(largest - base))[0];
    largest = highest;
    total = total * kept + sum(added);
    return kept;
}

// The item's rows are of one key head after the other, and there of one token after the other.
template <class Number>
struct Worker {
    const Step<Number>& step;
    const Item& item;
    int64_t rows_per_head, num_rows;
    Number* query;
    float* scores;
    PackedBlock<Number> packed;
    float* kept;
    const bool packs;
    int64_t offsets[kBlockKeys];
    const Number *keys[kBlockKeys], *values[kBlockKeys];

    static int64_t memory_size(int64_t num_rows, int64_t head_dim) {
        return num_rows * (head_dim + kBlockKeys + 1) + PackedBlock<Number>::memory_size(head_dim);
    }

    Worker(const Step<Number>& step, const Item& item, float* memory)
        : step(step), item(item), rows_per_head(item.num_tokens * step.group()),
          num_rows(rows_per_head * item.num_kv_heads), query(reinterpret_cast<Number*>(memory)),
          scores(memory + num_rows * step.head_dim),
          packed(scores + num_rows * kBlockKeys, step.head_dim),
          kept(scores + num_rows * kBlockKeys + PackedBlock<Number>::memory_size(step.head_dim)),
          packs(item.num_tokens > 1 && PackedBlock<Number>::takes(step.head_dim)) {}

    int64_t token_of(int64_t row) const { return row % rows_per_head / step.group(); }

    int64_t head_of(int64_t row) const {
        return (item.first_kv_head + row / rows_per_head) * step.group() + row % step.group();
    }

    void read_query() {
        for (int64_t row = 0; row < num_rows; ++row) {
            const Number* from = step.query + (item.first_token + token_of(row)) * step.query_stride +
                                 head_of(row) * step.head_dim;
            std::memcpy(query + row * step.head_dim, from, step.head_dim * sizeof(Number));
        }
    }

    // Beyond the last key stands the last once more, so that nothing outside the context is ever read.
    void find_keys(int64_t first_key, int64_t num_keys) {
        each_key(step, item, first_key, num_keys, [&](int64_t k, int64_t offset) { offsets[k] = offset; });
        std::fill(offsets + num_keys, offsets + kBlockKeys, offsets[num_keys - 1]);
    }

    // Calls body<4>(row), body<2>(row) or body<1>(row), for as many rows of a head at once.
    template <class Body>
    void in_tiles(int64_t first_row, const Body& body) const {
        int64_t row = first_row, end = first_row + rows_per_head;
        for (; row + 4 <= end; row += 4) body(std::integral_constant<int, 4>{}, row);
        for (; row + 2 <= end; row += 2) body(std::integral_constant<int, 2>{}, row);
        for (; row < end; ++row) body(std::integral_constant<int, 1>{}, row);
    }

    void hide(int64_t row, int64_t first_key, int64_t num_keys) {
        const int64_t position = item.first_position + token_of(row);
        const int64_t first = std::max<int64_t>(position - step.window + 1 - first_key, 0);
        const int64_t end = std::min(position + 1 - first_key, num_keys);
        float* row_scores = scores + row * kBlockKeys;
        std::fill(row_scores, row_scores + std::min(first, kBlockKeys), kHidden);
        if (end < kBlockKeys) std::fill(row_scores + std::max<int64_t>(end, 0), row_scores + kBlockKeys, kHidden);
    }

    // Whether each of the item's tokens sees each key of a block.
    bool sees_all(int64_t first_key, int64_t num_keys) const {
        const int64_t last_position = item.first_position + item.num_tokens - 1;
        return num_keys == kBlockKeys && first_key + kBlockKeys <= item.first_position + 1 &&
               first_key > last_position - step.window;
    }

    void add_block(int64_t head, int64_t first_key, int64_t num_keys, Sums sums, Ahead<Number>& ahead) {
        const int64_t D = step.head_dim, first_row = head * rows_per_head;
        for (int64_t k = 0; k < kBlockKeys; ++k) {
            keys[k] = step.keys + offsets[k] + head * D;
            values[k] = step.values + offsets[k] + head * D;
        }
        if (packs) packed.pack(keys, values);
        in_tiles(first_row, [&](auto rows, int64_t row) {
            if (packs)
                packed.template score<rows>(query + row * D, step.scale, scores + row * kBlockKeys);
            else
                score_rows<rows>(query + row * D, keys, num_keys, D, step.scale, scores + row * kBlockKeys);
        });
        const bool is_seen = sees_all(first_key, num_keys);
        for (int64_t row = first_row; row < first_row + rows_per_head; ++row) {
            if (!is_seen) hide(row, first_key, num_keys);
            kept[row] = soften(scores + row * kBlockKeys, sums.largest[row], sums.total[row]);
        }
        add_values(first_row, num_keys, sums, ahead);
    }

    void add_values(int64_t first_row, int64_t num_keys, Sums sums, Ahead<Number>& ahead) {
        const int64_t D = step.head_dim;
        if constexpr (PackedBlock<Number>::kPacksValues)
            if (packs) {
                for (int64_t row = first_row; row < first_row + rows_per_head; ++row)
                    round_weights(scores + row * kBlockKeys);
                in_tiles(first_row, [&](auto rows, int64_t row) {
                    packed.template add_values<rows>(scores + row * kBlockKeys, kept + row, num_keys,
                                                     sums.values + row * D, ahead);
                });
                return;
            }
        in_tiles(first_row, [&](auto rows, int64_t row) {
            add_rows<rows>(scores + row * kBlockKeys, kept + row, values, num_keys, D, sums.values + row * D, ahead);
        });
    }

    void attend(Sums sums, Ahead<Number>& ahead, int64_t call, const Item* end_of_items) {
        read_query();
        std::fill(sums.values, sums.values + num_rows * step.head_dim, 0.0f);
        std::fill(sums.largest, sums.largest + num_rows, kHidden);
        std::fill(sums.total, sums.total + num_rows, 0.0f);
        for (int64_t first_key = item.first_key; first_key < item.end_key; first_key += kBlockKeys) {
            const int64_t num_keys = std::min(kBlockKeys, item.end_key - first_key);
            find_keys(first_key, num_keys);
            ahead.begin_block(call, step, &item, end_of_items, first_key, num_keys);
            for (int64_t head = 0; head < item.num_kv_heads; ++head) add_block(head, first_key, num_keys, sums, ahead);
        }
    }

    void write(Sums sums) {
        for (int64_t row = 0; row < num_rows; ++row) {
            Number* out = step.out + ((item.first_token + token_of(row)) * step.num_heads + head_of(row)) * step.head_dim;
            for (int64_t d = 0; d < step.head_dim; d += kLanes)
                store(out + d, load(sums.values + row * step.head_dim + d) / splat(sums.total[row]));
        }
    }
};

// Joins the sums of a row's later spans to those of its first.
inline void join(Sums into, Sums other, int64_t num_rows, int64_t head_dim) {
    for (int64_t row = 0; row < num_rows; ++row) {
        const float highest = std::max(into.largest[row], other.largest[row]);
        const float base = highest == kHidden ? 0.0f : highest;
        const float kept = std::exp(into.largest[row] - base), added = std::exp(other.largest[row] - base);
        into.largest[row] = highest;
        into.total[row] = into.total[row] * kept + other.total[row] * added;
        for (int64_t d = row * head_dim; d < (row + 1) * head_dim; ++d)
            into.values[d] = into.values[d] * kept + other.values[d] * added;
    }
}

// How the query heads of a layer share its key heads, and how far they see.
struct Layout {
    int64_t num_heads, num_kv_heads, head_dim, window;

    int64_t group() const { return num_heads / num_kv_heads; }
};

// The sequences of a step, [S] each.
struct Lengths {
    const int64_t *query_lens, *context_lens;
    int64_t num_sequences;
};

// The sequences of a step cut into items, those with many tokens and those with one; the same for all like layers.
class Division {
  public:
    std::vector<Item> items;
    std::vector<int64_t> parts;  // of each item: the place of its sums among those that are joined at the end; or -1
    std::vector<float> part_memory;
    int64_t work = 0, num_parts = 0, max_rows = 0;

    Division(const Layout& layout, const Lengths& lengths, int64_t thread_limit) : layout_(layout) {
        // Four items a thread, where there are so many heads: with fewer, the last to end would be waited for long.
        const int64_t items_per_sequence = (4 * thread_limit + lengths.num_sequences - 1) / lengths.num_sequences;
        heads_per_token_ =
            thread_limit == 1 ? layout.num_kv_heads : std::max<int64_t>(1, layout.num_kv_heads / items_per_sequence);
        int64_t first_token = 0;
        for (int64_t sequence = 0; sequence < lengths.num_sequences; first_token += lengths.query_lens[sequence++])
            add_sequence(sequence, first_token, lengths.query_lens[sequence],
                         lengths.context_lens[sequence] - lengths.query_lens[sequence]);
        part_memory.resize(num_parts * sums_size());
    }

    int64_t sums_size() const { return Sums::size(max_rows, layout_.head_dim); }
    int64_t num_items() const { return static_cast<int64_t>(items.size()); }

  private:
    void add_tile(int64_t sequence, int64_t token, int64_t num_tokens, int64_t position, int64_t head,
                  int64_t num_kv_heads) {
        const int64_t first = std::max<int64_t>(0, position - layout_.window + 1), end = position + num_tokens;
        const int64_t num_spans = (end - first + kSpanKeys - 1) / kSpanKeys;
        const int64_t num_rows = num_tokens * num_kv_heads * layout_.group();
        max_rows = std::max(max_rows, num_rows);
        work += 2 * num_rows * (end - first) * layout_.head_dim;
        for (int64_t span = 0; span < num_spans; ++span) {
            const int64_t from = first + span * kSpanKeys, to = std::min(end, from + kSpanKeys);
            items.push_back({sequence, token, num_tokens, position, head, num_kv_heads, from, to, span, num_spans});
            parts.push_back(num_spans > 1 ? num_parts++ : -1);
        }
    }

    void add_sequence(int64_t sequence, int64_t first_token, int64_t num_tokens, int64_t start) {
        const int64_t heads_per_item = num_tokens == 1 ? heads_per_token_ : 1;
        const int64_t tokens_per_item = std::max<int64_t>(1, kRowsPerItem / layout_.group());
        for (int64_t head = 0; head < layout_.num_kv_heads; head += heads_per_item)
            for (int64_t token = 0; token < num_tokens; token += tokens_per_item)
                add_tile(sequence, first_token + token, std::min(tokens_per_item, num_tokens - token), start + token,
                         head, std::min(heads_per_item, layout_.num_kv_heads - head));
    }

    Layout layout_;
    int64_t heads_per_token_;
};

template <class Number, class Share>
void attend(const Step<Number>& step, Division& division, Share& share) {
    const int64_t D = step.head_dim, sums_size = division.sums_size();
    const int64_t worker_size = Worker<Number>::memory_size(division.max_rows, D);
    static std::atomic<int64_t> num_calls{0};
    const int64_t call = ++num_calls;
    const auto part_sums = [&](int64_t part, int64_t num_rows) {
        return Sums(division.part_memory.data() + part * sums_size, num_rows, D);
    };
    share(division.num_items(), division.work, [&](int64_t i) {
        static thread_local std::vector<float> memory;
        if (memory.size() < static_cast<size_t>(worker_size + sums_size + kLanes))
            memory.resize(worker_size + sums_size + kLanes);
        float* const lines = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float);
        Worker<Number> worker(step, division.items[i], lines);
        const int64_t part = division.parts[i];
        const Sums sums = part < 0 ? Sums(lines + worker_size, worker.num_rows, D)
                                   : part_sums(part, worker.num_rows);
        static thread_local Ahead<Number> ahead;
        worker.attend(sums, ahead, call, division.items.data() + division.num_items());
        if (part < 0) worker.write(sums);
    });
    if (division.num_parts == 0) return;
    share(division.num_items(), 0, [&](int64_t i) {
        const Item& item = division.items[i];
        if (item.num_spans == 1 || item.span > 0) return;
        Worker<Number> worker(step, item, nullptr);
        const int64_t first = division.parts[i];
        for (int64_t span = 1; span < item.num_spans; ++span)
            join(part_sums(first, worker.num_rows), part_sums(first + span, worker.num_rows), worker.num_rows, D);
        worker.write(part_sums(first, worker.num_rows));
    });
}

}  // namespace attention
