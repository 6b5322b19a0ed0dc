// SwiGLU's gate; the activation is rounded before the product, as torch rounds it.

#pragma once

#include "native/sharing.h"

namespace gate {

template <class Number>
void gate_row(const Number* gate, const Number* up, int64_t size, Number* out) {
    const auto gated = [](Floats g, Floats u) { return rounded<Number>(g / (exponential(-g) + 1.0f)) * u; };
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, gated(load(gate + i), load(up + i)));
    if (i < size) store_part(out + i, gated(load_part(gate + i, size - i), load_part(up + i, size - i)), size - i);
}

// Segments of a row are shared out too: one row of a wide layer is work for several.
template <class Number, class Share>
void gate_rows(const Number* gate_up, int64_t num_rows, int64_t size, Number* out, Share& share) {
    constexpr int64_t kSegment = 1024;
    const int64_t num_segments = (size + kSegment - 1) / kSegment;
    // An exponential is worth about four multiplications.
    share(num_rows * num_segments, 4 * num_rows * size, [&](int64_t i) {
        const int64_t row = i / num_segments, first = i % num_segments * kSegment;
        const Number* gate = gate_up + 2 * row * size + first;
        gate_row(gate, gate + size, std::min(kSegment, size - first), out + row * size + first);
    });
}

}  // namespace gate
