// Pages copied past the caches: what is written is for somebody else. Through them it would first be read from memory,
// only to be overwritten, and push out what this core still needs. A system's memcpy knows that of megabytes, but a page
// lies in pieces of some kilobytes: the keys and the values of each layer.

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace {

#ifdef __x86_64__

constexpr int64_t kLine = 64;
constexpr int64_t kLeastStreamed = 1024;

void stream_line(char* to, const char* from) {
#ifdef __AVX512F__
    _mm512_stream_si512((__m512i*)to, _mm512_loadu_si512(from));
#else
    for (int64_t i = 0; i < kLine; i += sizeof(__m128i))
        _mm_stream_si128((__m128i*)(to + i), _mm_loadu_si128((const __m128i*)(from + i)));
#endif
}

void copy(char* to, const char* from, int64_t size) {
    // A line that is written in part would cost more than through the caches.
    if (size < kLeastStreamed || size % kLine != 0 || reinterpret_cast<uintptr_t>(to) % kLine != 0) {
        std::memcpy(to, from, size);
        return;
    }
    for (int64_t i = 0; i < size; i += kLine) stream_line(to + i, from + i);
}

// Whoever is told of the pages after this finds them whole.
void finish() { _mm_sfence(); }

#else

void copy(char* to, const char* from, int64_t size) { std::memcpy(to, from, size); }

void finish() {}

#endif

// What some pages hold, page after page, in pieces that lie `distance` bytes apart in each.
struct Contents {
    const int64_t* page_ids;
    int64_t num_pieces, piece_bytes, distance;

    int64_t place_of(int64_t byte) const {
        const int64_t piece = byte / piece_bytes;
        return piece % num_pieces * distance + page_ids[piece / num_pieces] * piece_bytes + byte % piece_bytes;
    }

    // move(a place in the memory of pages, where it comes in the whole, bytes, the place that comes after them)
    template <class Move>
    void go_through(int64_t first, int64_t size, const Move& move) const {
        for (int64_t done = 0; done < size;) {
            const int64_t byte = first + done;
            const int64_t length = std::min(piece_bytes - byte % piece_bytes, size - done);
            move(place_of(byte), done, length, done + length < size ? place_of(byte + length) : place_of(byte));
            done += length;
        }
    }
};

// Into a buffer that is used at once. A piece begins where no hardware expects it: it is asked for ahead.
void fetch(char* to, const char* from, int64_t size, const char* next) {
    constexpr int64_t kStep = 256, kAhead = 4096;
    int64_t i = 0;
    for (; i + kStep <= size; i += kStep) {
        const char* ahead = i + kAhead < size ? from + i + kAhead : next + std::max<int64_t>(0, i + kAhead - size);
        for (int64_t line = 0; line < kStep; line += 64) __builtin_prefetch(ahead + line);
        std::memcpy(to + i, from + i, kStep);
    }
    std::memcpy(to + i, from + i, size - i);
}

}  // namespace

// The distances, in bytes: from the keys of a layer to its values and on to the next layer (a piece), from page to page,
// from token to token. One thread does it: the others compute meanwhile.
extern "C" void kvasir_copy_pages_bytes(const char* source, char* target, const int64_t* source_ids,
                                        const int64_t* target_ids, int64_t num_pages, int64_t num_pieces,
                                        int64_t num_tokens, int64_t token_bytes, int64_t source_piece,
                                        int64_t source_page, int64_t source_token, int64_t target_piece,
                                        int64_t target_page, int64_t target_token, int64_t) {
    if (source_token == token_bytes && target_token == token_bytes) {
        token_bytes *= num_tokens;
        num_tokens = 1;
    }
    for (int64_t piece = 0; piece < num_pieces; ++piece)
        for (int64_t page = 0; page < num_pages; ++page) {
            const char* from = source + piece * source_piece + source_ids[page] * source_page;
            char* to = target + piece * target_piece + target_ids[page] * target_page;
            for (int64_t token = 0; token < num_tokens; ++token)
                copy(to + token * target_token, from + token * source_token, token_bytes);
        }
    finish();
}

extern "C" void kvasir_read_pages_bytes(const char* pages, const int64_t* page_ids, int64_t num_pieces,
                                        int64_t piece_bytes, int64_t distance, int64_t first, int64_t size, char* room,
                                        int64_t) {
    const Contents contents{page_ids, num_pieces, piece_bytes, distance};
    contents.go_through(first, size, [&](int64_t place, int64_t done, int64_t length, int64_t next) {
        fetch(room + done, pages + place, length, pages + next);
    });
}

extern "C" void kvasir_write_pages_bytes(char* pages, const int64_t* page_ids, int64_t num_pieces, int64_t piece_bytes,
                                         int64_t distance, int64_t first, int64_t size, const char* content, int64_t) {
    const Contents contents{page_ids, num_pieces, piece_bytes, distance};
    contents.go_through(first, size, [&](int64_t place, int64_t done, int64_t length, int64_t) {
        copy(pages + place, content + done, length);
    });
    finish();
}
