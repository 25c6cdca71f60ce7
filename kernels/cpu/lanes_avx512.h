// The 16 outputs of a panel in one register. Include it after the target pragma.
#pragma once

#include "tiles.h"

// gcc 12 takes the undefined registers of its own intrinsics for ours (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace pdq {
namespace {

struct Lanes {
    using Floats = __m512;
    using Bits = __m512i;

    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
    static Floats everywhere(float value) { return _mm512_set1_ps(value); }
    static Floats halves(const uint16_t* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
    static Floats to_floats(Bits sums) { return _mm512_cvtepi32_ps(sums); }

    static Bits bits(const void* from) { return _mm512_loadu_si512(from); }
    static Bits no_bits() { return _mm512_setzero_si512(); }
    static Bits everywhere(int32_t value) { return _mm512_set1_epi32(value); }
    static Bits low_nibbles(Bits bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
    static Bits high_nibbles(Bits bytes) { return low_nibbles(_mm512_srli_epi16(bytes, 4)); }
    // Of a pair of bfloat16 in each lane.
    static Floats first(Bits pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
    static Floats second(Bits pairs) {
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
    }
};

}  // namespace
}  // namespace pdq
