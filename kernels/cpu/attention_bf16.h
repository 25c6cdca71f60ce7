// What of attention is written for AVX512-BF16 too.
#pragma once

#include "attention.h"

namespace pdq {

// `attend_part` where head_dim is a multiple of 32.
void attend_part_bf16(const CachedHead& head, int64_t first, int64_t end, const BFloat16* queries, int64_t group,
                      float scale, SoftmaxState state);

constexpr int64_t SOFTENED_KEYS = 64;

// Scores of one row and 64 keys, of which [low, high) count, to weights, and on with the row's running softmax; returns by
// what the row's earlier sums are to be multiplied.
float soften_bf16(const float* scores, int64_t low, int64_t high, float scale, float& maximum, float& sum,
                  BFloat16* weights);

}  // namespace pdq
