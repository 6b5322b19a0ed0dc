// Units of a quantized matrix as numbers, and rows times a block of them; see product.h.
#pragma once

#include <memory>

#include "quantized_linear/product.h"

namespace quantized {

using linear::Step;

constexpr int kUnit = 4;

template <class Number>
constexpr int kSteps = kUnit / Step<Number>::kInputs;

// So many rows at most are multiplied at once; groups need twice the sums. Up to so many rows turn the integers into
// numbers each time that they read them; for more it is done once, into memory: of 8 bits that takes longer.
#ifdef __AVX512F__
template <Format kFormat>
constexpr int kTileRows = kFormat == kInt8 ? linear::kMaxRows : 6;
#else
template <Format kFormat>
constexpr int kTileRows = 1;
#endif

template <Format kFormat>
constexpr int kDirectRows = kFormat == kInt8 ? 12 : 24;

template <class Number, Format kFormat>
struct Decoder;

template <>
struct Decoder<float, kInt8> {
    static uint8_t byte_of(int8_t code) { return static_cast<uint8_t>(code); }
    static float number_of(uint8_t byte) { return static_cast<int8_t>(byte); }
    static int place(int k, int element) { return k * kLanes + element; }

    static Floats operand(const uint8_t* unit, int k) {
        const uint8_t* from = unit + k * kLanes;
#ifdef __AVX512F__
        return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
        Floats values;
        for (int lane = 0; lane < kLanes; ++lane) values[lane] = number_of(from[lane]);
        return values;
#endif
    }
};

// The lower and the upper bytes of 0 to 127 in bfloat16.
struct Magnitudes {
    alignas(64) uint8_t low[128] = {}, high[128] = {};

    constexpr Magnitudes() {
        for (int number = 1; number < 128; ++number) {
            int exponent = 0;
            while (number >> (exponent + 1)) ++exponent;
            const int bits = (127 + exponent) << 7 | (number << (7 - exponent) & 0x7f);
            low[number] = bits & 0xff;
            high[number] = bits >> 8;
        }
    }
};

inline constexpr Magnitudes kMagnitudes;

#ifdef __AVX512VBMI__
// Of each byte only the lower 7 bits count.
inline __m512i look_up(const uint8_t* table, __m512i bytes) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), bytes, _mm512_load_si512(table + 64));
}
#endif

// The sign above the magnitude, which alone looks up the number's two bytes: converting took twice as long.
template <>
struct Decoder<Bf16, kInt8> {
    static uint8_t byte_of(int8_t code) { return code < 0 ? 0x80 | -code : code; }
    static float number_of(uint8_t byte) { return byte & 0x80 ? -(byte & 0x7f) : byte; }

    // Two operands of 32 numbers lie in 64 bytes, 8 of one and 8 of the other in turn, as they are joined.
    static int place(int k, int element) { return k / 2 * 64 + element / 8 * 16 + k % 2 * 8 + element % 8; }

    static Words operand(const uint8_t* unit, int k) {
#ifdef __AVX512VBMI__
        const __m512i bytes = _mm512_loadu_si512(unit + k / 2 * 64);
        const __m512i low = look_up(kMagnitudes.low, bytes), magnitude = look_up(kMagnitudes.high, bytes);
        // magnitude | (bytes & sign)
        const __m512i high = _mm512_ternarylogic_epi32(magnitude, bytes, _mm512_set1_epi8(-128), 0xf8);
        return (Words)(k % 2 ? _mm512_unpackhi_epi8(low, high) : _mm512_unpacklo_epi8(low, high));
#else
        Bf16 numbers[2 * kLanes];
        for (int part = 0; part < 2; ++part) {
            Floats values;
            for (int i = 0; i < kLanes; ++i) values[i] = number_of(unit[place(k, part * kLanes + i)]);
            store(numbers + part * kLanes, values);
        }
        return Step<Bf16>::operand(numbers);
#endif
    }
};

template <class Number>
struct Nibbles {
    // The byte within a unit; its upper half for an odd k.
    static int place(int k, int element) { return element * static_cast<int>(sizeof(Number)) + k / 2; }
};

template <>
struct Decoder<float, kInt4> : Nibbles<float> {
    static Floats operand(const uint8_t* unit, int k) {
        Words nibbles;
        std::memcpy(&nibbles, unit, sizeof nibbles);
        return __builtin_convertvector((Ints)((nibbles >> (4 * k)) & 15) - 8, Floats);
    }
};

template <>
struct Decoder<Bf16, kInt4> : Nibbles<Bf16> {
    static Words operand(const uint8_t* unit, int k) {
#ifdef __AVX512BW__
        // The numbers -8 to 7 in bfloat16, twice: the fifth bit of an index belongs to the next nibble.
        alignas(64) static constexpr uint16_t kNumbers[32] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
            0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
            0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
        const __m512i nibbles = _mm512_srli_epi16(_mm512_loadu_si512(unit), 4 * k);
        return (Words)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(kNumbers));
#else
        uint16_t nibbles[2 * kLanes];
        std::memcpy(nibbles, unit, sizeof nibbles);
        Bf16 numbers[2 * kLanes];
        for (int part = 0; part < 2; ++part) {
            Floats values;
            for (int i = 0; i < kLanes; ++i) values[i] = (nibbles[part * kLanes + i] >> (4 * k) & 15) - 8;
            store(numbers + part * kLanes, values);
        }
        return Step<Bf16>::operand(numbers);
#endif
    }
};

template <class Number, class Out, Format kFormat>
class BlockProduct {
  public:
    // product.packed is not read.
    BlockProduct(const linear::Product<Number>& product, const Matrix<Number>& matrix, Out* out, int64_t block)
        : product_(product), out_(out), block_(block),
          group_size_(kFormat == kInt8 ? product.num_inputs : matrix.group_size),
          units_(matrix.packed + block * (product.num_inputs / kUnit) * kUnitBytes),
          scales_(matrix.scales + block * ((product.num_inputs + group_size_ - 1) / group_size_) * linear::kBlock) {}

    void run() {
        if (product_.num_rows > kDirectRows<kFormat>) decode();
        // Tiles of like sizes: a last one of a row or two would keep the multipliers waiting.
        int64_t num_tiles = (product_.num_rows + kTileRows<kFormat> - 1) / kTileRows<kFormat>;
        linear::Ahead ahead(units_ + product_.num_inputs / kUnit * kUnitBytes, kUnitBytes, num_tiles);
        for (int64_t row = 0; row < product_.num_rows; --num_tiles) {
            const int64_t num_rows = (product_.num_rows - row + num_tiles - 1) / num_tiles;
            tile_of<kTileRows<kFormat>>(num_rows, row, ahead);
            row += num_rows;
        }
    }

  private:
    static constexpr int kUnitBytes = linear::kBlock * kUnit * kFormat / 8;
    static constexpr int kOperands = 2 * kSteps<Number>;
    using Operand = typename Step<Number>::Operand;

    void decode() {
        static thread_local std::unique_ptr<Operand[]> memory;
        static thread_local int64_t capacity = 0;
        const int64_t size = product_.num_inputs / kUnit * kOperands;
        if (capacity < size) {
            memory.reset(new Operand[size]);
            capacity = size;
        }
        const uint8_t* unit = units_;
        for (Operand* to = memory.get(); to < memory.get() + size; to += kOperands, unit += kUnitBytes)
            KVASIR_UNROLL
            for (int k = 0; k < kOperands; ++k) to[k] = Decoder<Number, kFormat>::operand(unit, k);
        decoded_ = memory.get();
    }

    template <int kRows>
    void tile_of(int64_t num_rows, int64_t row, linear::Ahead& ahead) {
        if constexpr (kRows > 0) {
            if (num_rows != kRows)
                tile_of<kRows - 1>(num_rows, row, ahead);
            else if (decoded_)
                tile<kRows>(row, ahead, [operands = decoded_](int64_t unit, int k) {
                    return operands[unit * kOperands + k];
                });
            else
                tile<kRows>(row, ahead, [units = units_](int64_t unit, int k) {
                    return Decoder<Number, kFormat>::operand(units + unit * kUnitBytes, k);
                });
        }
    }

    template <int kRows, class Source>
    void tile(int64_t row, linear::Ahead& ahead, const Source& operand_of) {
        const Number* x = product_.x + row * product_.x_stride;
        const Bf16* scales = scales_;
        Floats totals[kRows][2] = {};
        for (int64_t first = 0; first < product_.num_inputs; first += group_size_, scales += linear::kBlock) {
            const int64_t end = std::min(first + group_size_, product_.num_inputs);
            Floats sums[kRows][2] = {};
            for (int64_t i = first; i < end; i += kUnit) {
                if constexpr (kRows > 1) ahead.fetch();
                KVASIR_UNROLL
                for (int k = 0; k < kOperands; ++k) {
                    const Operand operand = operand_of(i / kUnit, k);
                    const Number* inputs = x + i + k / 2 * Step<Number>::kInputs;
                    KVASIR_UNROLL
                    for (int r = 0; r < kRows; ++r)
                        sums[r][k % 2] = Step<Number>::add(sums[r][k % 2], inputs + r * product_.x_stride, operand);
                }
            }
            const Floats scale[2] = {load(scales), load(scales + kLanes)};
            KVASIR_UNROLL
            for (int r = 0; r < kRows; ++r)
                KVASIR_UNROLL
                for (int half = 0; half < 2; ++half)
                    totals[r][half] = (kFormat == kInt8 ? Floats{} : totals[r][half]) + sums[r][half] * scale[half];
        }
        linear::write_rows<kRows>(product_, out_, block_, row, totals);
    }

    const linear::Product<Number>& product_;
    Out* out_;
    const int64_t block_, group_size_;
    const uint8_t* units_;
    const Bf16* scales_;
    const Operand* decoded_ = nullptr;
};

// Where a number stands in its block: the unit, the operand there, and the element of it.
template <class Number>
struct Place {
    int64_t unit;
    int k, element;

    Place(int64_t output, int64_t input, int64_t num_inputs)
        : unit(output / linear::kBlock * (num_inputs / kUnit) + input / kUnit),
          k(input % kUnit / Step<Number>::kInputs * 2 + output % linear::kBlock / kLanes),
          element(output % kLanes * Step<Number>::kInputs + input % Step<Number>::kInputs) {}
};

template <class Number>
void put(uint8_t* packed, int64_t format, const Place<Number>& place, int8_t code) {
    uint8_t* unit = packed + place.unit * linear::kBlock * kUnit * format / 8;
    if (format == kInt8)
        unit[Decoder<Number, kInt8>::place(place.k, place.element)] = Decoder<Number, kInt8>::byte_of(code);
    else
        unit[Nibbles<Number>::place(place.k, place.element)] |= (code + 8) << (place.k % 2 * 4);
}

template <class Number>
float get(const uint8_t* packed, int64_t format, const Place<Number>& place) {
    const uint8_t* unit = packed + place.unit * linear::kBlock * kUnit * format / 8;
    if (format == kInt8)
        return Decoder<Number, kInt8>::number_of(unit[Decoder<Number, kInt8>::place(place.k, place.element)]);
    return (unit[Nibbles<Number>::place(place.k, place.element)] >> (place.k % 2 * 4) & 15) - 8;
}

// codes: [O, E], integers of so many bits. packed: as many bytes as the matrix has, 0 before; a last block's outputs
// that are none stay 0, whose number is none of theirs: nothing of them is ever written.
template <class Number, class Share>
void pack(const int8_t* codes, int64_t num_outputs, int64_t num_inputs, int64_t format, uint8_t* packed, Share& share) {
    const int64_t num_blocks = (num_outputs + linear::kBlock - 1) / linear::kBlock;
    share(num_blocks, num_outputs * num_inputs, [&](int64_t block) {
        const int64_t first = block * linear::kBlock, end = std::min(first + linear::kBlock, num_outputs);
        for (int64_t output = first; output < end; ++output)
            for (int64_t input = 0; input < num_inputs; ++input)
                put(packed, format, Place<Number>(output, input, num_inputs), codes[output * num_inputs + input]);
    });
}

template <class Number>
void unpack_row(const Matrix<Number>& matrix, int64_t num_inputs, int64_t row, Number* out) {
    const int64_t group_size = matrix.format == kInt8 ? num_inputs : matrix.group_size;
    const int64_t num_groups = (num_inputs + group_size - 1) / group_size;
    const Bf16* scales = matrix.scales + row / linear::kBlock * num_groups * linear::kBlock + row % linear::kBlock;
    for (int64_t input = 0; input < num_inputs; ++input) {
        const float number = get(matrix.packed, matrix.format, Place<Number>(row, input, num_inputs));
        const float scale = load_part(scales + input / group_size * linear::kBlock, 1)[0];
        store_part(out + input, splat(number * scale), 1);
    }
}

}  // namespace quantized
