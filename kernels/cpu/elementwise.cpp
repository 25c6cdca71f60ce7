// Norm, rotation, gate and the writing of keys and values. Memory holds float or bfloat16, arithmetic is float, and a
// row's result depends on nothing but the row. Twins and formulas: kernels/reference.py.

#include <omp.h>

#include "simd.h"

namespace pdq {
namespace {

// Below this many elements a second thread costs more than it does.
constexpr int64_t WORTH_A_THREAD = 32768;

inline int threads_for(int64_t elements, int threads) { return elements < 2 * WORTH_A_THREAD ? 1 : threads; }

template <class T>
void rms_norm_row(const T* x, const T* weight, T* out, int64_t size, float eps) {
    __m256 squares[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t i = 0;
    for (; i + 16 <= size; i += 16)
        for (int part = 0; part < 2; part++) {
            const __m256 value = load8(x + i + 8 * part);
            squares[part] = _mm256_fmadd_ps(value, value, squares[part]);
        }
    for (; i < size; i += 8) {
        const __m256 value = size - i >= 8 ? load8(x + i) : load_part(x + i, size - i);
        squares[0] = _mm256_fmadd_ps(value, value, squares[0]);
    }
    const float mean = sum8(_mm256_add_ps(squares[0], squares[1])) / static_cast<float>(size);
    const __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(mean + eps));
    for (i = 0; i + 8 <= size; i += 8)
        store8(out + i, _mm256_mul_ps(_mm256_mul_ps(load8(x + i), scale), load8(weight + i)));
    if (i < size) {
        const int64_t rest = size - i;
        const __m256 scaled = _mm256_mul_ps(load_part(x + i, rest), scale);
        store_part(out + i, _mm256_mul_ps(scaled, load_part(weight + i, rest)), rest);
    }
}

// x: [outer][inner][size] with strides, out: contiguous
template <class T>
void rms_norm(const T* x, int64_t outer_stride, int64_t inner_stride, const T* weight, T* out, int64_t outer,
              int64_t inner, int64_t size, float eps, int threads) {
    threads = threads_for(outer * inner * size, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < outer * inner; row++)
        rms_norm_row(x + row / inner * outer_stride + row % inner * inner_stride, weight, out + row * size, size, eps);
}

template <class T>
void rotate_head(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
    for (int64_t i = 0; i < half; i += 8) {
        const int64_t count = half - i;
        const bool whole = count >= 8;
        const auto load = [&](const T* from) {
            return whole ? load8(from + i) : load_part(from + i, count);
        };
        const __m256 low = load(x), high = load(x + half);
        const __m256 out_low = _mm256_fnmadd_ps(high, load(sin), _mm256_mul_ps(low, load(cos)));
        const __m256 out_high = _mm256_fmadd_ps(low, load(sin + half), _mm256_mul_ps(high, load(cos + half)));
        if (whole) {
            store8(out + i, out_low);
            store8(out + half + i, out_high);
        } else {
            store_part(out + i, out_low, count);
            store_part(out + half + i, out_high, count);
        }
    }
}

// x: [tokens][heads][head_dim] with strides, cos, sin: [tokens][head_dim], out: contiguous
template <class T>
void rope(const T* x, int64_t token_stride, int64_t head_stride, const T* cos, const T* sin, T* out, int64_t tokens,
          int64_t heads, int64_t head_dim, int threads) {
    threads = threads_for(tokens * heads * head_dim, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++)
            rotate_head(x + token * token_stride + head * head_stride, cos + token * head_dim, sin + token * head_dim,
                        out + (token * heads + head) * head_dim, head_dim / 2);
}

inline __m256 silu_times(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 denominator = _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), gate)));
    return _mm256_mul_ps(_mm256_div_ps(gate, denominator), up);
}

// gate_up: [rows][2 * size] with a row stride, gate first
template <class T>
void silu_mul(const T* gate_up, int64_t row_stride, T* out, int64_t rows, int64_t size, int threads) {
    threads = threads_for(rows * size * 4, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = gate_up + row * row_stride, *up = gate + size;
        T* to = out + row * size;
        int64_t i = 0;
        for (; i + 8 <= size; i += 8) store8(to + i, silu_times(load8(gate + i), load8(up + i)));
        const int64_t rest = size - i;
        if (rest) store_part(to + i, silu_times(load_part(gate + i, rest), load_part(up + i, rest)), rest);
    }
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
                                        T* out, int64_t outer, int64_t inner, int64_t size, float eps,               \
                                        int threads) {                                                               \
        pdq::rms_norm(x, outer_stride, inner_stride, weight, out, outer, inner, size, eps, threads);                 \
    }                                                                                                                \
    PDQ_EXPORT void pdq_rope_##NAME(const T* x, int64_t token_stride, int64_t head_stride, const T* cos,             \
                                    const T* sin, T* out, int64_t tokens, int64_t heads, int64_t head_dim,           \
                                    int threads) {                                                                   \
        pdq::rope(x, token_stride, head_stride, cos, sin, out, tokens, heads, head_dim, threads);                    \
    }                                                                                                                \
    PDQ_EXPORT void pdq_silu_mul_##NAME(const T* gate_up, int64_t row_stride, T* out, int64_t rows, int64_t size,    \
                                        int threads) {                                                               \
        pdq::silu_mul(gate_up, row_stride, out, rows, size, threads);                                                \
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
