// See attend.h.

#include "paged_attention/attend.h"

using namespace attention;

#define KVASIR_PAGED_ATTENTION(suffix, Number)                                                                        \
    extern "C" void kvasir_paged_attention_##suffix(                                                                  \
        const Number* query, int64_t query_stride, const Number* keys, const Number* values,                          \
        const int64_t* page_tables, int64_t num_table_pages, const int64_t* query_lens, const int64_t* context_lens,  \
        int64_t num_sequences, int64_t page_size, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,          \
        float scale, int64_t window, Number* out, int64_t thread_limit) {                                             \
        const Step<Number> step{query,     query_stride, keys,         values,   page_tables, num_table_pages,        \
                                page_size, num_heads,    num_kv_heads, head_dim, scale,       window, out};           \
        Division division({num_heads, num_kv_heads, head_dim, window}, {query_lens, context_lens, num_sequences},     \
                          thread_limit);                                                                              \
        OwnThreads threads{thread_limit};                                                                             \
        attend(step, division, threads);                                                                              \
    }

KVASIR_PAGED_ATTENTION(float32, float)
KVASIR_PAGED_ATTENTION(bfloat16, Bf16)
