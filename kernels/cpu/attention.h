// Attention over keys and values where they lie in the pool, in bfloat16: one task at a time, for whoever deals them out.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pdq {

// One KV head of one sequence in the pool.
struct CachedHead {
    const BFloat16 *keys, *values;  // of the head, in block 0
    int64_t block_stride;           // elements
    int64_t block_size, head_dim;
    const int32_t* table;

    int64_t place(int64_t token) const { return table[token / block_size] * block_stride + token % block_size * head_dim; }
};

// A part's running softmax, for each of the queries that share a KV head.
struct SoftmaxState {
    float *maximum, *sum, *values;  // [group], [group], [group][head_dim]
};

constexpr int64_t DECODE_PART = 256;  // tokens of one task of decode attention

// Tokens [first, end) of a sequence. queries: [group][head_dim], one after the other. head_dim a multiple of 8.
void attend_part(const CachedHead& head, int64_t first, int64_t end, const BFloat16* queries, int64_t group,
                 float scale, SoftmaxState state);

// Query `g`'s parts, in order and `stride` floats apart, to out [head_dim]. A state lies [group] maxima, [group] sums,
// [group][head_dim] values.
void merge_parts(const float* states, int64_t parts, int64_t stride, int64_t group, int64_t g, int64_t head_dim, BFloat16* out);

// New tokens [first, first + count) of a sequence attend to all before them and themselves, of a window (0: none) to the
// last `window` of these. q, out: of the first token and the group's first query; strides in elements. head_dim a
// multiple of 8. Blocks of keys are counted from the sequence's own beginning, so a token's result does not depend on
// where prompts are cut into chunks and tasks.
void attend_tokens(const CachedHead& head, int64_t first, int64_t count, const BFloat16* q, int64_t q_token_stride,
                   int64_t group, float scale, int64_t window, BFloat16* out, int64_t out_token_stride);

// How many tokens such a task had best take.
constexpr int64_t prefill_tokens(int64_t group) { return group >= 128 ? 1 : 128 / group; }

}  // namespace pdq
