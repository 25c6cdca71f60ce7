// Decode attention by AVX512-BF16: scores and weighted sums of 16 tokens at a time, straight from the pool's rows.
//
// A score is summed across a register at the end; for 16 tokens at once that takes three shuffles and one addition each.
// Weights are rounded to bfloat16, as the values are. A token beyond the end counts with weight 0 on a row that is there.

#include <algorithm>

#include "attention.h"

// attention_bf16.h declares it for callers; here it would be one of two versions, by target, of one name.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "exp16.h"

namespace pdq {
namespace {

constexpr int64_t TOKENS = 16;

inline __m512bh bf16(const BFloat16* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

// The sum over each of 16 registers, in order.
inline __m512 sums16(const __m512* a) {
    __m512 four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 two[2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const __m512 x = a[4 * i + 2 * j], y = a[4 * i + 2 * j + 1];
            two[j] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
        }
        const __m512d x = _mm512_castps_pd(two[0]), y = _mm512_castps_pd(two[1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    __m512 half[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m512 x = four[2 * i], y = four[2 * i + 1];
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
}

// Scores of 16 consecutive rows against one query of DIM elements, which stays in registers.
template <int DIM>
inline __m512 scores_of(const BFloat16* keys, const BFloat16* query) {
    __m512bh q[DIM / 32];
#pragma GCC unroll 4
    for (int i = 0; i < DIM / 32; i++) q[i] = bf16(query + 32 * i);
    __m512 sums[TOKENS];
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; t++) {
        sums[t] = _mm512_dpbf16_ps(_mm512_setzero_ps(), q[0], bf16(keys + t * DIM));
#pragma GCC unroll 4
        for (int i = 1; i < DIM / 32; i++) sums[t] = _mm512_dpbf16_ps(sums[t], q[i], bf16(keys + t * DIM + 32 * i));
    }
    return sums16(sums);
}

// The same for any number of rows up to 16 and any head_dim.
inline __m512 scores_of_some(const BFloat16* keys, int64_t count, const BFloat16* query, int64_t head_dim) {
    __m512 sums[TOKENS];
    for (int64_t t = 0; t < TOKENS; t++) {
        sums[t] = _mm512_setzero_ps();
        if (t < count)
            for (int64_t d = 0; d < head_dim; d += 32)
                sums[t] = _mm512_dpbf16_ps(sums[t], bf16(query + d), bf16(keys + t * head_dim + d));
    }
    return sums16(sums);
}

inline __m512 scores(const BFloat16* keys, int64_t count, const BFloat16* query, int64_t head_dim) {
    if (count == TOKENS && head_dim == 64) return scores_of<64>(keys, query);
    if (count == TOKENS && head_dim == 128) return scores_of<128>(keys, query);
    return scores_of_some(keys, count, query, head_dim);
}

// values[g][0..32) = values[g][0..32) * kept[g] + sum over t of weights[g][t] * value t [0..32), for WIDTH queries
template <int WIDTH>
void add_values(const BFloat16* cached, int64_t count, const BFloat16 (*weights)[TOKENS], const float* kept,
                int64_t head_dim, float* values) {
    __m512 low[WIDTH], high[WIDTH];
#pragma GCC unroll 8
    for (int g = 0; g < WIDTH; g++) {
        const __m512 factor = _mm512_set1_ps(kept[g]);
        low[g] = _mm512_mul_ps(_mm512_loadu_ps(values + g * head_dim), factor);
        high[g] = _mm512_mul_ps(_mm512_loadu_ps(values + g * head_dim + 16), factor);
    }
    // Elements 0..15 and 16..31 of two rows, each beside its like in the other row.
    const __m512i first = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006,
                                            0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d,
                                            0x2e000e, 0x2f000f);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    for (int64_t t = 0; t < count; t += 2) {
        const __m512i even = _mm512_loadu_si512(cached + t * head_dim);
        const __m512i odd = t + 1 < count ? _mm512_loadu_si512(cached + (t + 1) * head_dim) : even;
        const auto a = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(even, first, odd));
        const auto b = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(even, second, odd));
#pragma GCC unroll 8
        for (int g = 0; g < WIDTH; g++) {
            int32_t pair;
            std::memcpy(&pair, weights[g] + t, 4);
            const auto weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            low[g] = _mm512_dpbf16_ps(low[g], weight, a);
            high[g] = _mm512_dpbf16_ps(high[g], weight, b);
        }
    }
#pragma GCC unroll 8
    for (int g = 0; g < WIDTH; g++) {
        _mm512_storeu_ps(values + g * head_dim, low[g]);
        _mm512_storeu_ps(values + g * head_dim + 16, high[g]);
    }
}

// Blocks lie scattered and are no longer than the hardware's prefetch takes to find a stream: without this 16 sequences
// of 200 tokens are read at 5 GB/s, with it at 14.
inline void fetch(const BFloat16* rows, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) _mm_prefetch(reinterpret_cast<const char*>(rows + i), _MM_HINT_T1);
}

}  // namespace

float soften_bf16(const float* scores, int64_t low, int64_t high, float scale, float& maximum, float& sum,
                  BFloat16* weights) {
    const __m512 factor = _mm512_set1_ps(scale), minus_infinity = _mm512_set1_ps(-INFINITY);
    const uint64_t below = high >= 64 ? ~0ull : (1ull << std::max<int64_t>(0, high)) - 1;
    const uint64_t there = low >= 64 ? 0 : below & (~0ull << low);
    if (!there) {  // the row's window begins behind this block
        std::memset(weights, 0, 64 * sizeof(BFloat16));
        return 1.0f;
    }
    __m512 kept[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        kept[i] = _mm512_mask_mul_ps(minus_infinity, __mmask16(there >> 16 * i), _mm512_loadu_ps(scores + 16 * i), factor);
    const float before = maximum;
    const __m512 top = _mm512_max_ps(_mm512_max_ps(kept[0], kept[1]), _mm512_max_ps(kept[2], kept[3]));
    maximum = std::max(before, _mm512_reduce_max_ps(top));
    const __m512 largest = _mm512_set1_ps(maximum);
    __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __mmask16 here = __mmask16(there >> 16 * i);
        const __m512 weight = _mm512_maskz_mov_ps(here, exp16(_mm512_sub_ps(kept[i], largest)));
        total = _mm512_add_ps(total, weight);
        const __m256bh rounded = _mm512_cvtneps_pbh(weight);
        std::memcpy(weights + 16 * i, &rounded, sizeof(rounded));
    }
    const float factor_before = before == maximum ? 1.0f : _mm512_cvtss_f32(exp16(_mm512_set1_ps(before - maximum)));
    sum = sum * factor_before + _mm512_reduce_add_ps(total);
    return factor_before;
}

void attend_part_bf16(const CachedHead& head, int64_t first, int64_t end, const BFloat16* queries, int64_t group,
                      float scale, SoftmaxState state) {
    constexpr int64_t AT_ONCE = 8;  // queries
    const int64_t head_dim = head.head_dim;
    std::fill(state.maximum, state.maximum + group, -INFINITY);
    std::fill(state.sum, state.sum + group, 0.0f);
    std::fill(state.values, state.values + group * head_dim, 0.0f);
    BFloat16 weights[AT_ONCE][TOKENS];
    float kept[AT_ONCE];
    for (int64_t token = first; token < end;) {
        const int64_t count = std::min({TOKENS, end - token, head.block_size - token % head.block_size});
        const int64_t place = head.place(token);
        const __mmask16 there = _cvtu32_mask16((1u << count) - 1);
        if (token + count < end) {
            const int64_t next = head.place(token + count);
            fetch(head.keys + next, TOKENS * head_dim);
            fetch(head.values + next, TOKENS * head_dim);
        }
        for (int64_t begin = 0; begin < group; begin += AT_ONCE) {
            const int64_t some = std::min(AT_ONCE, group - begin);
            for (int64_t g = 0; g < some; g++) {
                const BFloat16* const query = queries + (begin + g) * head_dim;
                const __m512 scaled =
                    _mm512_mul_ps(scores(head.keys + place, count, query, head_dim), _mm512_set1_ps(scale));
                float& maximum = state.maximum[begin + g];
                const float before = maximum;
                maximum = std::max(before, _mm512_mask_reduce_max_ps(there, scaled));
                const __m512 weight = _mm512_maskz_mov_ps(there, exp16(_mm512_sub_ps(scaled, _mm512_set1_ps(maximum))));
                kept[g] = before == maximum ? 1.0f : _mm512_cvtss_f32(exp16(_mm512_set1_ps(before - maximum)));
                state.sum[begin + g] = state.sum[begin + g] * kept[g] + _mm512_reduce_add_ps(weight);
                const __m256bh rounded = _mm512_cvtneps_pbh(weight);
                std::memcpy(weights[g], &rounded, sizeof(rounded));
            }
            for (int64_t d = 0; d < head_dim; d += 32) {
                float* const values = state.values + begin * head_dim + d;
                const BFloat16* const cached = head.values + place + d;
                switch (some) {
                    case 1: add_values<1>(cached, count, weights, kept, head_dim, values); break;
                    case 2: add_values<2>(cached, count, weights, kept, head_dim, values); break;
                    case 3: add_values<3>(cached, count, weights, kept, head_dim, values); break;
                    case 4: add_values<4>(cached, count, weights, kept, head_dim, values); break;
                    case 5: add_values<5>(cached, count, weights, kept, head_dim, values); break;
                    case 6: add_values<6>(cached, count, weights, kept, head_dim, values); break;
                    case 7: add_values<7>(cached, count, weights, kept, head_dim, values); break;
                    case 8: add_values<8>(cached, count, weights, kept, head_dim, values); break;
                }
            }
        }
        token += count;
    }
}

}  // namespace pdq
