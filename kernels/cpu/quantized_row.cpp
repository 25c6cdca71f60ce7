// A row of x to int8, for products with INT8 and INT4 panels. AVX2 for every instruction set: it is done once for many
// products.

#include "quantized_row.h"

#include <cstring>

#include "tiles_of.h"

#include "simd.h"

namespace pdq {
namespace {

// A group whose largest is below this is zero: 127 / largest has to be finite, and nothing so small is told apart.
constexpr float SMALLEST = 1e-30f;

__m256i absolute(const uint16_t* x) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_cvtepu16_epi32(_mm_and_si128(halves, _mm_set1_epi16(0x7fff)));
}

// As integers, so that a NaN is larger than all, and its group's scale, and every result.
float largest_of(const uint16_t* x) {
    const __m256i four = _mm256_max_epi32(_mm256_max_epi32(absolute(x), absolute(x + 8)),
                                          _mm256_max_epi32(absolute(x + 16), absolute(x + 24)));
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), four);
    uint32_t bits = 0;
    for (uint32_t lane : lanes) bits = lane > bits ? lane : bits;
    bits <<= 16;
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    return largest;
}

void quantize_group(const uint16_t* x, const QuantizedRow<uint8_t>& row, int64_t group) {
    const float largest = largest_of(x);
    const bool is_zero = largest < SMALLEST;
    const __m256 inverse = _mm256_set1_ps(is_zero ? 0.0f : 127.0f / largest);
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < GROUP; i += 8) {
        const __m256 values = load8(reinterpret_cast<const BFloat16*>(x) + i);
        const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(values, inverse));  // to nearest even
        sums = _mm256_add_epi32(sums, whole);
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(row.values + group * GROUP + i), bytes);
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    int32_t sum = 0;
    for (int32_t lane : lanes) sum += lane;
    const float scale = is_zero ? 0.0f : largest / 127.0f;
    row.scales()[group] = scale;
    row.sums()[group] = scale * static_cast<float>(sum);
    row.offsets()[group] = -128 * sum;
}

}  // namespace

void avx2::quantize_row(const uint16_t* x, int64_t ins, uint8_t* out) {
    const QuantizedRow<uint8_t> row{out, (ins + GROUP - 1) / GROUP};
    const int64_t whole = ins / GROUP;
    for (int64_t group = 0; group < whole; group++) quantize_group(x + group * GROUP, row, group);
    if (whole == row.groups) return;
    uint16_t last[GROUP] = {};
    std::memcpy(last, x + whole * GROUP, (ins - whole * GROUP) * sizeof *x);
    quantize_group(last, row, whole);
}

}  // namespace pdq
