// What the CPU kernels share: numbers as wide vectors, the checkpoint's dtypes, and when to use several threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

constexpr int kLanes = 16;

// Sums stay in registers only if the loops over them are unrolled whole.
#define KVASIR_UNROLL _Pragma("GCC unroll 16")

// One AVX-512 register; where a CPU has less, the compiler cuts it into what there is.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct Bf16 {
    uint16_t bits;
};

inline Floats splat(float value) { return value - Floats{}; }

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const Bf16* from) {
#ifdef __AVX512F__
    // Compilers convert so many at once in several pieces.
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
#endif
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// Rounds to nearest, ties to even; NaN stays NaN. Where the processor does it, what is below 2^-126 becomes 0.
inline void store(Bf16* to, Floats values) {
#ifdef __AVX512BF16__
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)values);
#else
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words quiet = (bits >> 16) | 0x40;
    const Halves halves = __builtin_convertvector(values == values ? rounded : quiet, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` numbers of a row, the other lanes 0: for rows that are no multiple of a vector.
template <class Number>
inline Floats load_part(const Number* from, int64_t count) {
    Number padded[kLanes] = {};
    std::memcpy(padded, from, count * sizeof(Number));
    return load(padded);
}

template <class Number>
inline void store_part(Number* to, Floats values, int64_t count) {
    Number padded[kLanes];
    store(padded, values);
    std::memcpy(to, padded, count * sizeof(Number));
}

// As a store to memory of this dtype and a load from it would round.
template <class Number>
inline Floats rounded(Floats values) {
    Number stored[kLanes];
    store(stored, values);
    return load(stored);
}

template <>
inline Floats rounded<float>(Floats values) {
    return values;
}

// Each lane with the one `distance` away, then those of half the distance: four operations that wait for one another,
// and not sixteen.
#define KVASIR_ACROSS(values, ...) __builtin_shufflevector(values, values, __VA_ARGS__)

template <class Join>
inline float joined(Floats values, const Join& join) {
    values = join(values, KVASIR_ACROSS(values, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    values = join(values, KVASIR_ACROSS(values, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    values = join(values, KVASIR_ACROSS(values, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    values = join(values, KVASIR_ACROSS(values, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return values[0];
}

inline float sum(Floats values) {
    return joined(values, [](Floats a, Floats b) { return a + b; });
}

// Of numbers; where a lane of b is NaN, that of a stays.
inline Floats larger(Floats a, Floats b) { return b > a ? b : a; }

inline float largest(Floats values) { return joined(values, larger); }

// e to the x, relative error below 2e-7 (Cephes' polynomial); 0 below -87, NaN for NaN.
inline Floats exponential(Floats x) {
    const Floats low = splat(-87.0f), high = splat(88.0f);
    const Floats bounded = x < low ? low : x > high ? high : x;
    const Floats shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the integer
    const Ints exponent = (Ints)shifted - 0x4b400000;
    const Floats whole = shifted - 12582912.0f;
    const Floats rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats value = splat(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        value = value * rest + term;
    value = value * rest * rest + rest + 1.0f;
    value = value * (Floats)((exponent + 127) << 23);
    return x < low ? Floats{} : value;
}

// Meeting at a barrier costs some microseconds: this many multiplications, or as much work, earn one more thread.
constexpr int64_t kWorkPerThread = 1 << 18;

inline int threads_for(int64_t work, int64_t limit) {
    return static_cast<int>(std::max<int64_t>(1, std::min(limit, work / kWorkPerThread)));
}

// Calls body(i) for each i below count. One thread meets no barrier and asks OpenMP nothing. Several take a few at a
// time, so that one that the system puts aside holds up less than its share.
template <class Body>
inline void for_each(int64_t count, int num_threads, const Body& body) {
    if (num_threads <= 1) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
    const int64_t chunk = std::max<int64_t>(1, count / (8 * num_threads));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(num_threads)
    for (int64_t i = 0; i < count; ++i) body(i);
}
