// A decoder and a step of it, as Python hands them over: kernels/decoder_step.py has the same fields in the same order.
#pragma once

#include <cstdint>

#include "simd.h"
#include "tiles.h"

namespace pdq {

struct Linear {
    Matrix matrix;
    const BFloat16* bias;  // [outs], or null
};

struct Layer {
    const BFloat16* input_norm;             // [hidden]
    const BFloat16 *query_norm, *key_norm;  // [head_dim], or null
    const BFloat16* post_norm;              // [hidden]
    Linear qkv, output, gate_up, down;      // gate_up: all gates, then all ups
    int64_t window;                         // tokens that a token sees, itself included; 0: all
};

struct Decoder {
    const Layer* layers;
    const BFloat16 *embedding, *final_norm;  // [vocab][hidden], [hidden]
    Linear head;                             // to the vocabulary; null panels: none
    int64_t num_layers, hidden, heads, kv_heads, head_dim, intermediate;
    float eps, scale;
};

// The KV pool, [block][layer][keys, values][kv head][token][head_dim]; strides in elements.
struct Pool {
    BFloat16* memory;
    int64_t block_stride, layer_stride, value_offset, block_size;
};

// Sequences, each with the new tokens [starts[s], starts[s + 1]) of the batch behind `contexts[s]` tokens of its own.
struct Step {
    int64_t tokens, seqs;
    const int64_t *token_ids, *positions, *slots;  // [tokens]; slot: where in the pool a token's keys and values go
    const BFloat16 *cos, *sin;                     // [positions][head_dim]
    const int32_t *starts, *contexts;  // [seqs + 1], [seqs]
    const int32_t* tables;             // [seqs][table_stride], blocks
    int64_t table_stride;
    int64_t wanted;                // tokens whose output is wanted
    int64_t answered;              // of the first so many of those, the logits too
    const int64_t* wanted_tokens;  // [wanted]
    BFloat16* hidden;              // out [wanted][hidden], before the final norm
    float* logits;                 // out [answered][vocab], or null
    int64_t* places;               // out [answered], of each one's largest logit, or null
    float* logprobs;               // out [answered], of these; null where `places` is
    int64_t many_rows;             // 1: prefill, whose quantized weights are multiplied as bfloat16
};

}  // namespace pdq
