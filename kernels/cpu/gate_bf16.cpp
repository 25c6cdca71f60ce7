// 16 gates at a time, rounded and gated without going through memory. A prefill step of 128 tokens of SmolLM2 on a core of
// Zen 4 takes 135 ms by it, with 8 at a time 141.

#include "simd.h"

// gate_bf16.h declares it for callers; here it would be one of two versions, by target, of one name.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "exp16.h"

namespace pdq {
namespace {

inline __m256i rounded(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

inline __m512 as_bf16(const float* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(_mm512_loadu_ps(from))), 16));
}

}  // namespace

void silu_mul_bf16(const float* gate, const float* up, BFloat16* out, int64_t size) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < size; i += 16) {
        const __m512 x = as_bf16(gate + i);
        const __m512 denominator = _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x)));
        const __m512 gated = _mm512_mul_ps(_mm512_div_ps(x, denominator), as_bf16(up + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), rounded(gated));
    }
}

}  // namespace pdq
