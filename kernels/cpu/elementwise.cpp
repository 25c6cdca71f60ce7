// Norm, rotation, gate and the writing of keys and values. Memory holds float or bfloat16, arithmetic is float, and a
// row's result depends on nothing but the row. Twins and formulas: kernels/reference.py.

#include <algorithm>

#include "rows.h"
#include "team.h"

namespace pdq {
namespace {

constexpr int64_t WORTH_A_TASK = 16384;  // elements, about 3 us

// task(row) for every row, several of them at a time
template <class Task>
void rows_of(int64_t rows, int64_t row_size, const Task& task) {
    const int64_t at_once = std::max<int64_t>(1, WORTH_A_TASK / row_size);
    const int64_t tasks = (rows + at_once - 1) / at_once;
    const auto some = [&](int64_t i) {
        for (int64_t row = i * at_once; row < std::min(rows, (i + 1) * at_once); row++) task(row);
    };
    if (tasks <= 1) return some(0);
    Team::of_process().run([&](Crew& crew) { crew.each(tasks, some); });
}

// x: [outer][inner][size] with strides, out: contiguous
template <class T>
void rms_norm(const T* x, int64_t outer_stride, int64_t inner_stride, const T* weight, T* out, int64_t outer,
              int64_t inner, int64_t size, float eps) {
    rows_of(outer * inner, size, [&](int64_t row) {
        rms_norm_row(x + row / inner * outer_stride + row % inner * inner_stride, weight, out + row * size, size, eps);
    });
}

// x: [tokens][heads][head_dim] with strides, cos, sin: [tokens][head_dim], out: contiguous
template <class T>
void rope(const T* x, int64_t token_stride, int64_t head_stride, const T* cos, const T* sin, T* out, int64_t tokens,
          int64_t heads, int64_t head_dim) {
    rows_of(tokens, heads * head_dim, [&](int64_t token) {
        for (int64_t head = 0; head < heads; head++)
            rotate_head(x + token * token_stride + head * head_stride, cos + token * head_dim, sin + token * head_dim,
                        out + (token * heads + head) * head_dim, head_dim / 2);
    });
}

// gate_up: [rows][2 * size] with a row stride, gate first
template <class T>
void silu_mul(const T* gate_up, int64_t row_stride, T* out, int64_t rows, int64_t size) {
    rows_of(rows, size * 4, [&](int64_t row) {
        silu_mul_row(gate_up + row * row_stride, gate_up + row * row_stride + size, out + row * size, size);
    });
}

// new: [tokens][heads][head_dim] with strides; cache: [blocks][heads][block_size][head_dim], the last three contiguous.
// Strides in elements. slot < 0: the token is not written.
template <class T>
void kv_write(const T* keys, int64_t key_token_stride, int64_t key_head_stride, const T* values,
              int64_t value_token_stride, int64_t value_head_stride, T* key_cache, T* value_cache,
              int64_t block_stride, const int64_t* slots, int64_t tokens, int64_t heads, int64_t block_size,
              int64_t head_dim) {
    for (int64_t token = 0; token < tokens; token++) {
        const int64_t slot = slots[token];
        if (slot < 0) continue;
        for (int64_t head = 0; head < heads; head++) {
            const int64_t place =
                slot / block_size * block_stride + (head * block_size + slot % block_size) * head_dim;
            std::memcpy(key_cache + place, keys + token * key_token_stride + head * key_head_stride,
                        head_dim * sizeof(T));
            std::memcpy(value_cache + place, values + token * value_token_stride + head * value_head_stride,
                        head_dim * sizeof(T));
        }
    }
}

}  // namespace
}  // namespace pdq

#define PDQ_ELEMENTWISE(NAME, T)                                                                                     \
    PDQ_EXPORT void pdq_rms_norm_##NAME(const T* x, int64_t outer_stride, int64_t inner_stride, const T* weight,     \
                                        T* out, int64_t outer, int64_t inner, int64_t size, float eps) {             \
        pdq::rms_norm(x, outer_stride, inner_stride, weight, out, outer, inner, size, eps);                          \
    }                                                                                                                \
    PDQ_EXPORT void pdq_rope_##NAME(const T* x, int64_t token_stride, int64_t head_stride, const T* cos,             \
                                    const T* sin, T* out, int64_t tokens, int64_t heads, int64_t head_dim) {         \
        pdq::rope(x, token_stride, head_stride, cos, sin, out, tokens, heads, head_dim);                             \
    }                                                                                                                \
    PDQ_EXPORT void pdq_silu_mul_##NAME(const T* gate_up, int64_t row_stride, T* out, int64_t rows, int64_t size) {  \
        pdq::silu_mul(gate_up, row_stride, out, rows, size);                                                         \
    }                                                                                                                \
    PDQ_EXPORT void pdq_kv_write_##NAME(                                                                             \
        const T* keys, int64_t key_token_stride, int64_t key_head_stride, const T* values,                           \
        int64_t value_token_stride, int64_t value_head_stride, T* key_cache, T* value_cache, int64_t block_stride,   \
        const int64_t* slots, int64_t tokens, int64_t heads, int64_t block_size, int64_t head_dim) {                 \
        pdq::kv_write(keys, key_token_stride, key_head_stride, values, value_token_stride, value_head_stride,        \
                      key_cache, value_cache, block_stride, slots, tokens, heads, block_size, head_dim);             \
    }

PDQ_ELEMENTWISE(bf16, pdq::BFloat16)
PDQ_ELEMENTWISE(f32, float)
