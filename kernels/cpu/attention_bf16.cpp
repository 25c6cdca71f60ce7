// Decode attention by AVX512-BF16: 64 tokens at a time, straight from the pool's rows, for up to four queries at once.
//
// A key or value is loaded once for those queries. A score is summed across a register at the end; for 16 tokens at once
// that takes three shuffles and one addition each. Weights are rounded to bfloat16, as the values are.
//
// What is in the cache takes three queries 153 ns per 16 tokens of 64 elements on a core of Zen 4, and took 203 when each
// query looked at the maximum every 16 tokens; 16 sequences of 192 tokens in memory take 5.4 and took 6.0 ms a step.

#include <algorithm>

#include "attention.h"

// attention_bf16.h declares it for callers; here it would be one of two versions, by target, of one name.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "attention_bf16.h"
#include "exp16.h"

namespace pdq {
namespace {

constexpr int64_t LONGEST = 16;  // tokens of a run
constexpr int64_t AT_ONCE = 4;   // queries
constexpr int64_t SCORES = SOFTENED_KEYS + LONGEST;

inline __m512bh bf16(const BFloat16* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

// Into the second cache. One run's lines at once: spread among the products they come no sooner and cost more.
inline void fetch(const BFloat16* rows, int64_t elements) {
    for (int64_t i = 0; i < elements; i += 32) _mm_prefetch(reinterpret_cast<const char*>(rows + i), _MM_HINT_T1);
}

// Tokens that lie one after the other in a block.
struct Run {
    const BFloat16 *keys, *values;
    int64_t count;
};

// Some consecutive tokens of a head: at most SOFTENED_KEYS, between two looks at the maximum.
struct Span {
    Run runs[SOFTENED_KEYS];
    int64_t num_runs = 0, count = 0;

    Span(const CachedHead& head, int64_t first, int64_t end) {
        end = std::min(end, first + SOFTENED_KEYS);
        for (int64_t token = first; token < end; token = first + count) {
            const int64_t some = std::min({LONGEST, end - token, head.block_size - token % head.block_size});
            runs[num_runs++] = {head.keys + head.place(token), head.values + head.place(token), some};
            count += some;
        }
    }
};

// Per 128 bits the sum of that part of four registers, in order.
inline __m512 sums4(const __m512* a) {
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const __m512d x = _mm512_castps_pd(low), y = _mm512_castps_pd(high);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

// Four such to the sums over each of the 16 registers.
inline __m512 sums16(const __m512* a) {
    __m512 half[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m512 x = a[2 * i], y = a[2 * i + 1];
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
}

// scores[g][t] = query g . key t of a run. Where there are fewer than LONGEST the last stands in for the others, as what
// lies behind it may be no number; their scores count for nothing.
template <int WIDTH>
inline void run_scores(const Run& run, const BFloat16* queries, int64_t head_dim, float (*scores)[SCORES], int64_t at) {
    __m512 quads[WIDTH][4];
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; quad++) {
        const BFloat16* keys[4];
        __m512 sums[WIDTH][4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            keys[t] = run.keys + std::min<int64_t>(4 * quad + t, run.count - 1) * head_dim;
#pragma GCC unroll 4
            for (int g = 0; g < WIDTH; g++) sums[g][t] = _mm512_setzero_ps();
        }
        for (int64_t d = 0; d < head_dim; d += 32)
#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) {
                const __m512bh key = bf16(keys[t] + d);
#pragma GCC unroll 4
                for (int g = 0; g < WIDTH; g++)
                    sums[g][t] = _mm512_dpbf16_ps(sums[g][t], bf16(queries + g * head_dim + d), key);
            }
#pragma GCC unroll 4
        for (int g = 0; g < WIDTH; g++) quads[g][quad] = sums4(sums[g]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < WIDTH; g++) _mm512_storeu_ps(scores[g] + at, sums16(quads[g]));
}

// values[g] = values[g] * kept[g] + the sum over a span's tokens of weight t * value t, for elements [from, from + 32) of
// the values, of which those of `next` are fetched meanwhile.
template <int WIDTH>
inline void add_values(const Span& span, const Span& next, int64_t from, const BFloat16 (*weights)[SOFTENED_KEYS],
                       const float* kept, int64_t head_dim, float* values) {
    __m512 low[WIDTH], high[WIDTH];
#pragma GCC unroll 4
    for (int g = 0; g < WIDTH; g++) {
        const __m512 factor = _mm512_set1_ps(kept[g]);
        low[g] = _mm512_mul_ps(_mm512_loadu_ps(values + g * head_dim), factor);
        high[g] = _mm512_mul_ps(_mm512_loadu_ps(values + g * head_dim + 16), factor);
    }
    const auto add = [&](__m512i even, __m512i odd, const auto& pair_of) {
        // Two rows interleaved within 128 bits each: elements 0..3, 8..11, 16..19, 24..27, and the others.
        const auto a = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd));
        const auto b = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 4
        for (int g = 0; g < WIDTH; g++) {
            const auto weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair_of(g)));
            low[g] = _mm512_dpbf16_ps(low[g], weight, a);
            high[g] = _mm512_dpbf16_ps(high[g], weight, b);
        }
    };
    for (int64_t index = 0, at = 0; index < span.num_runs; at += span.runs[index++].count) {
        const BFloat16* row = span.runs[index].values + from;
        const int64_t count = span.runs[index].count;
        if (from == 0 && index < next.num_runs) fetch(next.runs[index].values, next.runs[index].count * head_dim);
        int64_t t = 0;
        for (; t + 2 <= count; t += 2, row += 2 * head_dim)
            add(_mm512_loadu_si512(row), _mm512_loadu_si512(row + head_dim), [&](int g) {
                int32_t pair;
                std::memcpy(&pair, weights[g] + at + t, sizeof pair);
                return pair;
            });
        if (t < count)
            add(_mm512_loadu_si512(row), _mm512_setzero_si512(), [&](int g) { return int32_t(weights[g][at + t].bits); });
    }
#pragma GCC unroll 4
    for (int g = 0; g < WIDTH; g++) {
        _mm512_storeu_ps(values + g * head_dim, low[g]);
        _mm512_storeu_ps(values + g * head_dim + 16, high[g]);
    }
}

// 32 elements in the order in which `add_values` leaves them, put into their own.
inline void put_in_order(float* values) {
    const __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + 16);
    const __m512 first = _mm512_shuffle_f32x4(low, high, 0x44), second = _mm512_shuffle_f32x4(low, high, 0xee);
    _mm512_storeu_ps(values, _mm512_shuffle_f32x4(first, first, 0xd8));
    _mm512_storeu_ps(values + 16, _mm512_shuffle_f32x4(second, second, 0xd8));
}

// A span's part in the softmax of WIDTH queries.
template <int WIDTH>
void attend_span(const Span& span, const Span& next, const BFloat16* queries, int64_t head_dim, float scale,
                 SoftmaxState state) {
    float scores[WIDTH][SCORES], kept[WIDTH];
    BFloat16 weights[WIDTH][SOFTENED_KEYS];
    for (int64_t index = 0, at = 0; index < span.num_runs; at += span.runs[index++].count) {
        if (index < next.num_runs) fetch(next.runs[index].keys, next.runs[index].count * head_dim);
        run_scores<WIDTH>(span.runs[index], queries, head_dim, scores, at);
    }
#pragma GCC unroll 4
    for (int g = 0; g < WIDTH; g++)
        kept[g] = soften_bf16(scores[g], 0, span.count, scale, state.maximum[g], state.sum[g], weights[g]);
    for (int64_t from = 0; from < head_dim; from += 32)
        add_values<WIDTH>(span, next, from, weights, kept, head_dim, state.values + from);
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
    const int64_t head_dim = head.head_dim;
    std::fill(state.maximum, state.maximum + group, -INFINITY);
    std::fill(state.sum, state.sum + group, 0.0f);
    std::fill(state.values, state.values + group * head_dim, 0.0f);
    Span span(head, first, end);
    for (int64_t i = 0; i < span.num_runs; i++) {
        fetch(span.runs[i].keys, span.runs[i].count * head_dim);
        fetch(span.runs[i].values, span.runs[i].count * head_dim);
    }
    while (span.count) {
        first += span.count;
        const Span next(head, first, end);
        for (int64_t g = 0; g < group; g += AT_ONCE) {
            const SoftmaxState some{state.maximum + g, state.sum + g, state.values + g * head_dim};
            const BFloat16* const theirs = queries + g * head_dim;
            switch (std::min(AT_ONCE, group - g)) {
                case 1: attend_span<1>(span, next, theirs, head_dim, scale, some); break;
                case 2: attend_span<2>(span, next, theirs, head_dim, scale, some); break;
                case 3: attend_span<3>(span, next, theirs, head_dim, scale, some); break;
                case 4: attend_span<4>(span, next, theirs, head_dim, scale, some); break;
            }
        }
        span = next;
    }
    for (int64_t i = 0; i < group * head_dim; i += 32) put_in_order(state.values + i);
}

}  // namespace pdq
