// See norm_row.h.

#include "rms_norm/norm_row.h"

#define KVASIR_RMS_NORM(suffix, Number)                                                                               \
    extern "C" void kvasir_rms_norm_##suffix(const Number* x, const Number* residual, const Number* weight,           \
                                             float eps, int64_t num_rows, int64_t size, Number* total, Number* out,   \
                                             int64_t thread_limit) {                                                  \
        OwnThreads threads{thread_limit};                                                                             \
        norm::norm_rows(x, residual, weight, eps, num_rows, size, total, out, threads);                               \
    }

KVASIR_RMS_NORM(float32, float)
KVASIR_RMS_NORM(bfloat16, Bf16)
