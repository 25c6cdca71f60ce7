// Eight floats at a time from and to memory that holds float or bfloat16. AVX2, FMA and F16C from here to the file's end:
// include it after every other header. Rounding to bfloat16 is to nearest, ties to even; NaN stays NaN.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#define PDQ_EXPORT extern "C" __attribute__((visibility("default")))

#pragma GCC target("avx2,fma,f16c")

namespace pdq {

struct BFloat16 {
    uint16_t bits;
};

inline __m256 load8(const float* from) { return _mm256_loadu_ps(from); }

inline __m256 load8(const BFloat16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline void store8(float* to, __m256 values) { _mm256_storeu_ps(to, values); }

inline void store8(BFloat16* to, __m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i halves = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

// The last `count` < 8 elements of a row: lanes beyond are zero, and are not touched in memory.
template <class T>
inline __m256 load_part(const T* from, int64_t count) {
    alignas(32) T lanes[8] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load8(lanes);
}

template <class T>
inline void store_part(T* to, __m256 values, int64_t count) {
    alignas(32) T lanes[8];
    store8(lanes, values);
    std::memcpy(to, lanes, count * sizeof(T));
}

inline float sum8(__m256 values) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float max8(__m256 values) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// e^x to about 1 ulp. Below -87.3 the result is 0, above 88.7 infinity; NaN stays NaN.
inline __m256 exp8(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.3365447f), high = _mm256_set1_ps(88.7228394f);
    const __m256 clamped = _mm256_min_ps(_mm256_max_ps(x, low), high);
    // x = n * ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts, so that r is exact.
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504f)), 0);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), clamped);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    for (float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(coefficient));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    // 2^n in two factors: n reaches 128, which one exponent cannot hold.
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
    p = _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), p);
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, high, _CMP_GT_OQ));
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

}  // namespace pdq
