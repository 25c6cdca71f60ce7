// The 16 outputs of a panel in two registers. Include it after the target pragma.
#pragma once

#include "tiles.h"

namespace pdq {
namespace {

struct Lanes {
    struct Floats {
        __m256 low, high;
    };
    struct Bits {
        __m256i low, high;
    };

    static Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static void store(float* to, Floats values) {
        _mm256_storeu_ps(to, values.low);
        _mm256_storeu_ps(to + 8, values.high);
    }
    static Floats everywhere(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Floats halves(const uint16_t* from) {
        const __m128i* at = reinterpret_cast<const __m128i*>(from);
        return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
    }
    static Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    // Into the sum's own register: gcc 12 takes the factor's and moves sums about until they spill (64 to 80 GFLOP/s).
    static Floats multiply_add(Floats a, Floats b, Floats sum) {
        asm("vfmadd231ps %2, %1, %0" : "+x"(sum.low) : "x"(a.low), "x"(b.low));
        asm("vfmadd231ps %2, %1, %0" : "+x"(sum.high) : "x"(a.high), "x"(b.high));
        return sum;
    }
    static Floats to_floats(Bits sums) { return {_mm256_cvtepi32_ps(sums.low), _mm256_cvtepi32_ps(sums.high)}; }

    static Bits bits(const void* from) {
        const __m256i* at = static_cast<const __m256i*>(from);
        return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
    }
    static Bits no_bits() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Bits everywhere(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
    static Bits low_nibbles(Bits bytes) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(bytes.low, mask), _mm256_and_si256(bytes.high, mask)};
    }
    static Bits high_nibbles(Bits bytes) {
        return low_nibbles({_mm256_srli_epi16(bytes.low, 4), _mm256_srli_epi16(bytes.high, 4)});
    }
    // Of a pair of bfloat16 in each lane.
    static Floats first(Bits pairs) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs.low, 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(pairs.high, 16))};
    }
    static Floats second(Bits pairs) {
        const __m256i mask = _mm256_set1_epi32(0xffff0000);
        return {_mm256_castsi256_ps(_mm256_and_si256(pairs.low, mask)),
                _mm256_castsi256_ps(_mm256_and_si256(pairs.high, mask))};
    }
};

}  // namespace
}  // namespace pdq
