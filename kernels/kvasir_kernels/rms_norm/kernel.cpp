// RMSNorm of rows, with or without the residual's addition; rounded where reference.py rounds.

#include <cmath>

#include "vectors.h"

namespace {

// total may be x itself. residual null: nothing is added, and total is not written.
template <class Number>
void norm_row(const Number* x, const Number* residual, const Number* weight, float eps, int64_t size, Number* total,
              Number* out) {
    const auto part = [&](const Number* from, int64_t i) {
        return i + kLanes <= size ? load(from + i) : load_part(from + i, size - i);
    };
    const auto put = [&](Number* to, int64_t i, Floats values) {
        i + kLanes <= size ? store(to + i, values) : store_part(to + i, values, size - i);
    };
    Floats squares = {};
    for (int64_t i = 0; i < size; i += kLanes) {
        Floats values = part(x, i);
        if (residual) {
            values = rounded<Number>(values + part(residual, i));
            put(total, i, values);
        }
        squares += values * values;
    }
    const Number* summed = residual ? total : x;
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
    for (int64_t i = 0; i < size; i += kLanes)
        put(out, i, rounded<Number>(part(summed, i) * scale) * part(weight, i));
}

template <class Number>
void norm_rows(const Number* x, const Number* residual, const Number* weight, float eps, int64_t num_rows,
               int64_t size, Number* total, Number* out, int64_t thread_limit) {
    for_each(num_rows, threads_for(num_rows * size, std::min(thread_limit, num_rows)), [&](int64_t row) {
        const int64_t first = row * size;
        norm_row(x + first, residual ? residual + first : nullptr, weight, eps, size,
                 residual ? total + first : nullptr, out + first);
    });
}

}  // namespace

#define KVASIR_RMS_NORM(suffix, Number)                                                                               \
    extern "C" void kvasir_rms_norm_##suffix(const Number* x, const Number* residual, const Number* weight,           \
                                             float eps, int64_t num_rows, int64_t size, Number* total, Number* out,   \
                                             int64_t thread_limit) {                                                  \
        norm_rows(x, residual, weight, eps, num_rows, size, total, out, thread_limit);                                \
    }

KVASIR_RMS_NORM(float32, float)
KVASIR_RMS_NORM(bfloat16, Bf16)
