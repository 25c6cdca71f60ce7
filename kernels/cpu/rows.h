// What is done to one row: norm, rotation, gate. Memory holds float or bfloat16, arithmetic is float, and a row's result
// depends on nothing but the row. Twins and formulas: kernels/reference.py.
#pragma once

#include "simd.h"

namespace pdq {

template <class T>
inline void rms_norm_row(const T* x, const T* weight, T* out, int64_t size, float eps) {
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

template <class T>
inline void rotate_head(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
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

inline __m256 silu_times(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 denominator = _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), gate)));
    return _mm256_mul_ps(_mm256_div_ps(gate, denominator), up);
}

// out = silu(gate) * up. Gate and up of any type that `load8` reads.
template <class From, class T>
inline void silu_mul_row(const From* gate, const From* up, T* out, int64_t size) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) store8(out + i, silu_times(load8(gate + i), load8(up + i)));
    if (const int64_t rest = size - i)
        store_part(out + i, silu_times(load_part(gate + i, rest), load_part(up + i, rest)), rest);
}

}  // namespace pdq
