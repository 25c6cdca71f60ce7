// The largest logit of each row and the log of its probability. Twin: kernels/greedy.py.

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "team.h"

namespace pdq {
namespace {

// Of equals the first. What is no number, or infinite, makes the result NaN, as nothing can be chosen there.
float greedy_row(const float* logits, int64_t size, int64_t* index) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) top = _mm256_max_ps(load8(logits + i), top);
    float largest = max8(top);
    for (; i < size; i++) largest = std::max(largest, logits[i]);
    *index = std::find(logits, logits + size, largest) - logits;
    __m256 sums = _mm256_setzero_ps();
    const __m256 shift = _mm256_set1_ps(largest);
    for (i = 0; i + 8 <= size; i += 8) sums = _mm256_add_ps(sums, exp8(_mm256_sub_ps(load8(logits + i), shift)));
    float sum = sum8(sums);
    for (; i < size; i++) sum += _mm256_cvtss_f32(exp8(_mm256_set1_ps(logits[i] - largest)));
    return -std::log(sum);
}

}  // namespace
}  // namespace pdq

// logits: [rows][stride], of which `size` count. -> the place and the logprob of each row's largest
PDQ_EXPORT void pdq_greedy(const float* logits, int64_t stride, int64_t rows, int64_t size, int64_t* indexes,
                           float* logprobs) {
    pdq::Team::of_process().run([=](pdq::Crew& crew) {
        crew.each(rows, [=](int64_t row) {
            logprobs[row] = pdq::greedy_row(logits + row * stride, size, indexes + row);
        });
    });
}
