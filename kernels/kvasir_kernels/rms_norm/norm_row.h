// RMSNorm of rows, with or without the residual's addition; rounded where reference.py rounds.

#pragma once

#include <cmath>

#include "native/sharing.h"

namespace norm {

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

template <class Number, class Share>
void norm_rows(const Number* x, const Number* residual, const Number* weight, float eps, int64_t num_rows,
               int64_t size, Number* total, Number* out, Share& share) {
    share(num_rows, num_rows * size, [&](int64_t row) {
        const int64_t first = row * size;
        norm_row(x + first, residual ? residual + first : nullptr, weight, eps, size,
                 residual ? total + first : nullptr, out + first);
    });
}

}  // namespace norm
