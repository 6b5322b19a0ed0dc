// Where the keys and values of a work item lie, and how they are fetched from memory while others are computed.

#pragma once

#include "native/vectors.h"

namespace attention {

constexpr int64_t kBlockKeys = 64, kLineBytes = 64;

template <class Number>
struct Step {
    const Number* query;  // [T, H, D], tokens query_stride apart
    int64_t query_stride;
    const Number *keys, *values;  // [N, P, K, D]
    const int64_t* page_tables;   // [S, M]
    int64_t num_table_pages, page_size, num_heads, num_kv_heads, head_dim;
    float scale;
    int64_t window;  // how many tokens a token sees, itself included
    Number* out;     // [T, H, D]

    int64_t group() const { return num_heads / num_kv_heads; }
};

struct Item {
    int64_t sequence, first_token, num_tokens, first_position, first_kv_head, num_kv_heads, first_key, end_key;
    int64_t span, num_spans;
};

// Calls body(i, offset) for the keys from first_key on: where the item's heads of each lie in the cache.
template <class Number, class Body>
void each_key(const Step<Number>& step, const Item& item, int64_t first_key, int64_t num_keys, const Body& body) {
    const int64_t* table = step.page_tables + item.sequence * step.num_table_pages;
    int64_t page = first_key / step.page_size, in_page = first_key % step.page_size;
    for (int64_t k = 0; k < num_keys; ++page, in_page = 0)
        for (; in_page < step.page_size && k < num_keys; ++in_page, ++k)
            body(k, ((table[page] * step.page_size + in_page) * step.num_kv_heads + item.first_kv_head) * step.head_dim);
}

// Fetches as many keys and values ahead as are computed meanwhile, in the order in which they lie, so that bytes and
// operations take their times at once. One item follows the other, as threads mostly take them:
//
//   item         |--------------------------------------|-------------------- ...
//   computed       block | block | rest                   block
//   fetched                block | rest, and the next item's first keys
//
// Of one thread, during one call: after a call of another number nothing of before counts.
template <class Number>
class Ahead {
  public:
    // The keys from first_key on are about to be computed: they are in the cache when this returns.
    void begin_block(int64_t call, const Step<Number>& step, const Item* item, const Item* end_of_items,
                     int64_t first_key, int64_t num_keys) {
        const int64_t end_key = first_key + num_keys;
        while (run_ < num_runs_) fetch<1>();
        if (call != call_ || item_ < item || (item_ == item && key_ < end_key)) {
            touch(step, *item, step.keys, first_key, num_keys);
            touch(step, *item, step.values, first_key, num_keys);
            call_ = call;
            move_to(item, end_key, end_of_items);
        }
        plan(step, end_of_items, num_keys);
    }

    // A few lines of what was planned: called once for each vector of a value that is added.
    template <int kLines>
    void fetch() {
        KVASIR_UNROLL
        for (int i = 0; i < kLines; ++i) {
            if (run_ == num_runs_) return;
            __builtin_prefetch(runs_[run_].start + byte_, 0, 2);
            byte_ += kLineBytes;
            if (byte_ >= runs_[run_].num_bytes) {
                byte_ = 0;
                ++run_;
            }
        }
    }

  private:
    struct Run {
        const char* start;
        int64_t num_bytes;
    };

    // Reads a byte of each line of the item's heads. In order, the processor foresees it; prefetch instructions for the
    // pieces that the products read had measured half the speed.
    static void touch(const Step<Number>& step, const Item& item, const Number* cache, int64_t first_key,
                      int64_t num_keys) {
        constexpr int64_t kLine = kLineBytes / sizeof(Number);
        each_key(step, item, first_key, num_keys, [&](int64_t, int64_t offset) {
            for (int64_t d = 0; d < item.num_kv_heads * step.head_dim; d += kLine)
                *reinterpret_cast<const volatile char*>(cache + offset + d);
        });
    }

    void move_to(const Item* item, int64_t key, const Item* end_of_items) {
        item_ = item;
        key_ = key;
        if (key_ < item_->end_key) return;
        ++item_;
        key_ = item_ < end_of_items ? item_->first_key : 0;
    }

    void plan(const Step<Number>& step, const Item* end_of_items, int64_t num_keys) {
        run_ = num_runs_ = byte_ = 0;
        while (num_keys > 0 && item_ < end_of_items) {
            const int64_t count = std::min(num_keys, item_->end_key - key_);
            const int64_t num_bytes = item_->num_kv_heads * step.head_dim * sizeof(Number);
            for (const Number* cache : {step.keys, step.values})
                each_key(step, *item_, key_, count, [&](int64_t, int64_t offset) {
                    add_run(reinterpret_cast<const char*>(cache + offset), num_bytes);
                });
            num_keys -= count;
            move_to(item_, key_ + count, end_of_items);
        }
    }

    // All heads of the tokens of a page are one run.
    void add_run(const char* start, int64_t num_bytes) {
        Run* last = runs_ + num_runs_ - 1;
        if (num_runs_ > 0 && last->start + last->num_bytes == start)
            last->num_bytes += num_bytes;
        else
            runs_[num_runs_++] = {start, num_bytes};
    }

    int64_t call_ = 0, key_ = 0, byte_ = 0;
    const Item* item_ = nullptr;
    int run_ = 0, num_runs_ = 0;
    Run runs_[2 * kBlockKeys];
};

}  // namespace attention
