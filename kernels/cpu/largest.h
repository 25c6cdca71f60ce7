// The largest logit of a row and the log of its probability, put together from spans of the row that may be looked at by
// several threads in any order. The result depends on nothing but the row: `greedy.cpp` and the step, which never holds a
// whole row, give the same bits. Include it after simd.h and scratch.h. Twin: kernels/greedy.py.
#pragma once

#include <algorithm>

namespace pdq {

constexpr int64_t LARGEST_SPAN = 96;  // logits; the outputs of one task of the step

struct Largest {
    float value;    // of equals the first
    float sum;      // of e^(logit - value); NaN where a logit is NaN or +infinity
    int64_t place;  // in the row
};

// Of the `count` <= LARGEST_SPAN logits from `first` on, which lie at `logits`.
template <class T>
inline Largest largest_of_span(const T* logits, int64_t first, int64_t count) {
    __m256 values[LARGEST_SPAN / 8], top = _mm256_set1_ps(-INFINITY);
    const __m256 nothing = top;
    const int64_t whole = count / 8, vectors = (count + 7) / 8;
    for (int64_t i = 0; i < whole; i++) values[i] = load8(logits + 8 * i);
    if (const int64_t rest = count % 8) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i is_in = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(rest)), lanes);
        values[whole] = _mm256_blendv_ps(nothing, load_part(logits + 8 * whole, rest), _mm256_castsi256_ps(is_in));
    }
    for (int64_t i = 0; i < vectors; i++) top = _mm256_max_ps(values[i], top);  // NaN is passed over
    const float value = max8(top);
    const __m256 wanted = _mm256_set1_ps(value);
    int64_t place = 0;
    for (int64_t i = vectors - 1; i >= 0; i--)
        if (const int equal = _mm256_movemask_ps(_mm256_cmp_ps(values[i], wanted, _CMP_EQ_OQ)))
            place = 8 * i + __builtin_ctz(equal);
    const __m256 shift = _mm256_set1_ps(value == -INFINITY ? 0.0f : value);
    __m256 sums = _mm256_setzero_ps();
    for (int64_t i = 0; i < vectors; i++) sums = _mm256_add_ps(sums, exp8(_mm256_sub_ps(values[i], shift)));
    return {value, sum8(sums), first + place};
}

// spans: of the whole row, in order. -> the log of the probability of the largest, which is at *place; NaN where
// nothing can be chosen.
inline float largest_of_row(const Largest* spans, int64_t count, int64_t* place) {
    const Largest* best = spans;
    for (int64_t i = 1; i < count; i++)
        if (spans[i].value > best->value) best = spans + i;
    *place = best->place;
    float sum = 0.0f;
    for (int64_t i = 0; i < count; i += 8) {
        alignas(32) float values[8], sums[8];
        for (int64_t j = 0; j < 8; j++) {
            values[j] = i + j < count ? spans[i + j].value : -INFINITY;
            sums[j] = i + j < count ? spans[i + j].sum : 0.0f;
        }
        const __m256 factors = exp8(_mm256_sub_ps(load8(values), _mm256_set1_ps(best->value)));
        sum += sum8(_mm256_mul_ps(load8(sums), factors));
    }
    return -std::log(sum);
}

}  // namespace pdq
