// SwiGLU's gate; the activation is rounded before the product, as torch rounds it.

#include "vectors.h"

namespace {

template <class Number>
void gate_row(const Number* gate, const Number* up, int64_t size, Number* out) {
    const auto gated = [](Floats g, Floats u) { return rounded<Number>(g / (exponential(-g) + 1.0f)) * u; };
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, gated(load(gate + i), load(up + i)));
    if (i < size) store_part(out + i, gated(load_part(gate + i, size - i), load_part(up + i, size - i)), size - i);
}

template <class Number>
void gate_rows(const Number* gate_up, int64_t num_rows, int64_t size, Number* out, int64_t thread_limit) {
    // An exponential is worth about four multiplications.
    for_each(num_rows, threads_for(4 * num_rows * size, std::min(thread_limit, num_rows)), [&](int64_t row) {
        gate_row(gate_up + 2 * row * size, gate_up + (2 * row + 1) * size, size, out + row * size);
    });
}

}  // namespace

#define KVASIR_SILU_MUL(suffix, Number)                                                                               \
    extern "C" void kvasir_silu_mul_##suffix(const Number* gate_up, int64_t num_rows, int64_t size, Number* out,      \
                                             int64_t thread_limit) {                                                  \
        gate_rows(gate_up, num_rows, size, out, thread_limit);                                                        \
    }

KVASIR_SILU_MUL(float32, float)
KVASIR_SILU_MUL(bfloat16, Bf16)
