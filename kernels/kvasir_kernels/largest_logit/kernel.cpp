// Each row's largest number and where it stands first. A row is read twice, since the place of the largest would double
// the first reading's work; the second ends where it is found.

#include <limits>

#include "native/sharing.h"

namespace {

constexpr int kParts = 4;  // a comparison waits for the one before

struct Largest {
    float value;
    bool has_nan;
};

bool any(Ints lanes) {
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= lanes[lane];
    return found != 0;
}

Largest largest_of(const float* row, int64_t width) {
    Floats largest[kParts];
    Ints nan = {};
    for (Floats& part : largest) part = splat(-std::numeric_limits<float>::infinity());
    int64_t i = 0;
    for (; i + kParts * kLanes <= width; i += kParts * kLanes)
        KVASIR_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const Floats values = load(row + i + part * kLanes);
            largest[part] = values > largest[part] ? values : largest[part];
            nan |= values != values;
        }
    Largest found{-std::numeric_limits<float>::infinity(), any(nan)};
    for (const Floats& part : largest)
        for (int lane = 0; lane < kLanes; ++lane) found.value = std::max(found.value, part[lane]);
    for (; i < width; ++i) {
        found.has_nan |= row[i] != row[i];
        if (row[i] > found.value) found.value = row[i];
    }
    return found;
}

int64_t place_of(const Largest& largest, const float* row, int64_t width) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const Floats values = load(row + i);
        if (any(largest.has_nan ? values != values : values == splat(largest.value))) break;
    }
    while (largest.has_nan ? row[i] == row[i] : row[i] != largest.value) ++i;
    return i;
}

}  // namespace

extern "C" void kvasir_largest_logit_float32(const float* logits, int64_t num_rows, int64_t width, int64_t* token_ids,
                                             float* values, int64_t thread_limit) {
    OwnThreads threads{thread_limit};
    threads(num_rows, num_rows * width / 4, [&](int64_t r) {
        const float* row = logits + r * width;
        token_ids[r] = place_of(largest_of(row, width), row, width);
        values[r] = row[token_ids[r]];
    });
}
