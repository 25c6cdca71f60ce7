// INT8 and INT4 panels as BF16 ones: scale * code, or fma(scale, code, minimum), rounded once. AVX2 for every
// instruction set: it is done once for many rows.

#include <cstring>

#include "tiles_of.h"

#include "simd.h"

namespace pdq {
namespace {

// The float16 of 8 outputs.
__m256 halves(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

__m256i rounded(__m256 values) {  // bfloat16 in the low half of a lane
    BFloat16 lanes[8];
    store8(lanes, values);
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes)));
}

void store_pairs(uint16_t* to, __m256 even, __m256 odd) {
    const __m256i pairs = _mm256_or_si256(rounded(even), _mm256_slli_epi32(rounded(odd), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pairs);
}

// Byte i of each lane, with its sign.
template <int I>
__m256 byte_of(__m256i lanes) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(lanes, 24 - 8 * I), 24));
}

template <int SHIFT>
__m256 nibble_of(__m256i lanes) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(lanes, SHIFT), _mm256_set1_epi32(15)));
}

__m256i eight(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Two pairs of inputs of 8 outputs, PANEL pairs apart.
void int8_fours(__m256i lanes, __m256 scale, uint16_t* to) {
    store_pairs(to, _mm256_mul_ps(scale, byte_of<0>(lanes)), _mm256_mul_ps(scale, byte_of<1>(lanes)));
    store_pairs(to + 2 * PANEL, _mm256_mul_ps(scale, byte_of<2>(lanes)), _mm256_mul_ps(scale, byte_of<3>(lanes)));
}

template <int SHIFT>
void int4_fours(__m256i lanes, __m256 scale, __m256 minimum, uint16_t* to) {
    store_pairs(to, _mm256_fmadd_ps(scale, nibble_of<SHIFT>(lanes), minimum),
                _mm256_fmadd_ps(scale, nibble_of<SHIFT + 8>(lanes), minimum));
    store_pairs(to + 2 * PANEL, _mm256_fmadd_ps(scale, nibble_of<SHIFT + 16>(lanes), minimum),
                _mm256_fmadd_ps(scale, nibble_of<SHIFT + 24>(lanes), minimum));
}

// Eight outputs of a group.
void expand_int8(const uint8_t* group, int half, uint16_t* out) {
    const __m256 scale = halves(group + GROUP * PANEL + half * 16);
    for (int j = 0; j < 8; j++) int8_fours(eight(group + j * 64 + half * 32), scale, out + j * 4 * PANEL + half * 16);
}

void expand_int4(const uint8_t* group, int half, uint16_t* out) {
    const uint8_t* scales = group + GROUP * PANEL / 2 + half * 16;
    const __m256 scale = halves(scales), minimum = halves(scales + PANEL * 2);
    for (int j = 0; j < 4; j++) {
        const __m256i lanes = eight(group + j * 64 + half * 32);
        int4_fours<0>(lanes, scale, minimum, out + j * 8 * PANEL + half * 16);
        int4_fours<4>(lanes, scale, minimum, out + j * 8 * PANEL + half * 16 + 4 * PANEL);
    }
}

}  // namespace

void avx2::expand(const Matrix& matrix, int64_t first, int64_t panels, uint16_t* out) {
    const uint8_t* from = matrix.panels + first * matrix.panel_bytes();
    const int64_t groups = panels * matrix.groups();  // one after the other
    if (matrix.kind == BF16) {
        std::memcpy(out, from, groups * matrix.group_bytes());
        return;
    }
    for (int64_t group = 0; group < groups; group++, from += matrix.group_bytes(), out += GROUP * PANEL)
        for (int half = 0; half < 2; half++) matrix.kind == INT8 ? expand_int8(from, half, out) : expand_int4(from, half, out);
}

}  // namespace pdq
