// See place_token.h.

#include "rotate_and_write/place_token.h"

using namespace rotation;

#define KVASIR_ROTATE_AND_WRITE(suffix, Number)                                                                       \
    extern "C" void kvasir_rotate_and_write_##suffix(                                                                 \
        Number* heads, const Number* query_norm, const Number* key_norm, float eps, const float* cos,                 \
        const float* sin, int64_t angle_stride, const int64_t* slots, Number* keys, Number* values,                   \
        int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t thread_limit) {        \
        const Heads<Number> step{heads,   query_norm, key_norm, eps,    cos,        sin,       angle_stride,          \
                                 nullptr, slots,      keys,     values, num_tokens, num_heads, num_kv_heads,          \
                                 head_dim};                                                                           \
        OwnThreads threads{thread_limit};                                                                             \
        place_tokens(step, threads);                                                                                  \
    }

KVASIR_ROTATE_AND_WRITE(float32, float)
KVASIR_ROTATE_AND_WRITE(bfloat16, Bf16)
