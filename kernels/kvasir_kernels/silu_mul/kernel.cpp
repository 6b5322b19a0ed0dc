// See gate_row.h.

#include "silu_mul/gate_row.h"

#define KVASIR_SILU_MUL(suffix, Number)                                                                               \
    extern "C" void kvasir_silu_mul_##suffix(const Number* gate_up, int64_t num_rows, int64_t size, Number* out,      \
                                             int64_t thread_limit) {                                                  \
        OwnThreads threads{thread_limit};                                                                             \
        gate::gate_rows(gate_up, num_rows, size, out, threads);                                                       \
    }

KVASIR_SILU_MUL(float32, float)
KVASIR_SILU_MUL(bfloat16, Bf16)
