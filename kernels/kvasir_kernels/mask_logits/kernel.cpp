// Packed masks over logits: a word of 32 tokens that are all allowed is not even read.

#include <limits>

#include "native/vectors.h"

namespace {

constexpr int64_t kWordBits = 32;

void mask_word(float* logits, uint32_t word, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        const bool stays = (word >> i & 1u) || logits[i] != logits[i];
        logits[i] = stays ? logits[i] : -std::numeric_limits<float>::infinity();
    }
}

void mask_row(float* logits, const uint32_t* words, int64_t width) {
    int64_t start = 0;
    for (; start + kWordBits <= width; start += kWordBits, ++words)
        if (*words != ~uint32_t{0}) mask_word(logits + start, *words, kWordBits);
    if (start < width) mask_word(logits + start, *words, width - start);
}

}  // namespace

extern "C" void kvasir_mask_logits_float32(float* logits, const int64_t* rows, const uint32_t* bits, int64_t width,
                                           int64_t num_rows, int64_t num_words, int64_t thread_limit) {
    for_each(num_rows, threads_for(num_rows * width, std::min(thread_limit, num_rows)), [&](int64_t row) {
        mask_row(logits + rows[row] * width, bits + row * num_words, width);
    });
}
