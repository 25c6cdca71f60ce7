// Prefill attention: tiles of query rows against blocks of 64 keys, with the softmax kept online in float.
//
// Both products are those of tiles.h: keys and values of a block are put into panels first (a transpose and an
// interleaving, under 2 % of the work at 128 rows), so that every instruction set multiplies them as it does weights.

#include <algorithm>

#include "attention.h"
#include "attention_bf16.h"
#include "isa.h"
#include "scratch.h"
#include "tiles.h"

namespace pdq {
namespace {

constexpr int64_t KEYS = SOFTENED_KEYS;  // of a block

inline int64_t padded(int64_t ins) { return (ins + GROUP - 1) / GROUP * GROUP; }

// 8 rows of 8 words each to 8 columns.
inline void transpose8(const BFloat16* const* rows, int64_t from, uint32_t* out, int64_t out_stride) {
    __m256i r[8], s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + from));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_unpacklo_epi64(s[i + j], s[i + 2 + j]);
            r[i + 2 * j + 1] = _mm256_unpackhi_epi64(s[i + j], s[i + 2 + j]);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m256i low = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        const __m256i high = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * out_stride), low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (i + 4) * out_stride), high);
    }
}

// Keys as a matrix of KEYS outputs: panels [head_dim / 2][16 keys][2]. What is beyond head_dim stays as it is: zero.
void pack_keys(const BFloat16* const* rows, int64_t head_dim, uint32_t* panels) {
    const int64_t panel_words = padded(head_dim) / 2 * PANEL;
    for (int64_t key = 0; key < KEYS; key += 8) {
        uint32_t* const panel = panels + key / PANEL * panel_words + key % PANEL;
        int64_t d = 0;
        for (; d + 16 <= head_dim; d += 16) transpose8(rows + key, d, panel + d / 2 * PANEL, PANEL);
        for (; d < head_dim; d += 2)
            for (int64_t i = 0; i < 8; i++) std::memcpy(panel + d / 2 * PANEL + i, rows[key + i] + d, 4);
    }
}

// Values as a matrix of head_dim outputs and KEYS inputs: panels [KEYS / 2][16 elements][2].
void pack_values(const BFloat16* const* rows, int64_t head_dim, uint16_t* panels) {
    for (int64_t d = 0; d < head_dim; d += PANEL) {
        uint16_t* const panel = panels + d / PANEL * KEYS * PANEL;
        for (int64_t key = 0; key < KEYS; key += 2) {
            uint16_t* const to = panel + key * PANEL;
            if (d + PANEL <= head_dim) {
                const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[key] + d));
                const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[key + 1] + d));
                const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(low, high, 0x20));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + PANEL), _mm256_permute2x128_si256(low, high, 0x31));
            } else {
                for (int64_t i = 0; i < PANEL; i++)
                    for (int64_t j = 0; j < 2; j++) to[2 * i + j] = d + i < head_dim ? rows[key + j][d + i].bits : 0;
            }
        }
    }
}

float soften(const float* scores, int64_t low, int64_t high, float scale, float& maximum, float& sum,
             BFloat16* weights) {
    const __m256 minus_infinity = _mm256_set1_ps(-INFINITY), factor = _mm256_set1_ps(scale);
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i first = _mm256_set1_epi32(int(low) - 1), end = _mm256_set1_epi32(int(high));
    __m256 kept[KEYS / 8], top = minus_infinity;
#pragma GCC unroll 8
    for (int i = 0; i < KEYS / 8; i++) {
        const __m256i place = _mm256_add_epi32(lanes, _mm256_set1_epi32(8 * i));
        const __m256i seen = _mm256_and_si256(_mm256_cmpgt_epi32(place, first), _mm256_cmpgt_epi32(end, place));
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scores + 8 * i), factor);
        kept[i] = _mm256_blendv_ps(minus_infinity, scaled, _mm256_castsi256_ps(seen));
        top = _mm256_max_ps(top, kept[i]);
    }
    const float before = maximum;
    maximum = std::max(before, max8(top));
    if (maximum == -INFINITY) {  // the row's window begins behind this block
        std::memset(weights, 0, KEYS * sizeof(BFloat16));
        return 1.0f;
    }
    const __m256 largest = _mm256_set1_ps(maximum);
    __m256 total = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < KEYS / 8; i++) {
        const __m256 weight = exp8(_mm256_sub_ps(kept[i], largest));
        total = _mm256_add_ps(total, weight);
        store8(weights + 8 * i, weight);
    }
    const float factor_before = before == maximum ? 1.0f : _mm256_cvtss_f32(exp8(_mm256_set1_ps(before - maximum)));
    sum = sum * factor_before + sum8(total);
    return factor_before;
}

}  // namespace

void attend_tokens(const CachedHead& head, int64_t first, int64_t count, const BFloat16* q, int64_t q_token_stride,
                   int64_t group, float scale, int64_t window, BFloat16* out, int64_t out_token_stride) {
    const int64_t head_dim = head.head_dim, depth = padded(head_dim), rows = count * group;
    const int64_t value_panels = (head_dim + PANEL - 1) / PANEL, width = value_panels * PANEL;
    thread_local Scratch scratch;
    scratch.reserve(Scratch::bytes_of<BFloat16>(rows * depth) + Scratch::bytes_of<uint32_t>(depth / 2 * KEYS) +
                    Scratch::bytes_of<uint16_t>(KEYS * width) + Scratch::bytes_of<float>(rows * KEYS) +
                    Scratch::bytes_of<BFloat16>(rows * KEYS) + 2 * Scratch::bytes_of<float>(rows * width) +
                    3 * Scratch::bytes_of<float>(rows) + Scratch::bytes_of<BFloat16>(depth));
    BFloat16* const queries = scratch.take<BFloat16>(rows * depth);
    uint32_t* const key_panels = scratch.take<uint32_t>(depth / 2 * KEYS);
    uint16_t* const value_panel = scratch.take<uint16_t>(KEYS * width);
    float* const scores = scratch.take<float>(rows * KEYS);
    BFloat16* const weights = scratch.take<BFloat16>(rows * KEYS);
    float* const sums = scratch.take<float>(rows * width);
    float* const added = scratch.take<float>(rows * width);
    float* const maxima = scratch.take<float>(rows);
    float* const totals = scratch.take<float>(rows);
    float* const factors = scratch.take<float>(rows);
    BFloat16* const nothing = scratch.take<BFloat16>(depth);

    std::memset(queries, 0, rows * depth * sizeof(BFloat16));
    std::memset(key_panels, 0, depth / 2 * KEYS * sizeof(uint32_t));
    std::memset(nothing, 0, depth * sizeof(BFloat16));
    std::memset(sums, 0, rows * width * sizeof(float));
    for (int64_t row = 0; row < rows; row++) {
        const BFloat16* const from = q + row / group * q_token_stride + row % group * head_dim;
        std::memcpy(queries + row * depth, from, head_dim * sizeof(BFloat16));
        maxima[row] = -INFINITY;
        totals[row] = 0.0f;
    }
    const Matrix key_matrix{reinterpret_cast<const uint8_t*>(key_panels), BF16, head_dim, KEYS};
    const Matrix value_matrix{reinterpret_cast<const uint8_t*>(value_panel), BF16, KEYS, width};
    const auto soften_row = isa() >= AVX512_BF16 ? soften_bf16 : soften;
    const int64_t end = first + count;
    const int64_t seen = window > 0 ? std::max<int64_t>(0, first + 1 - window) : 0;
    for (int64_t block = seen / KEYS * KEYS; block < end; block += KEYS) {
        const BFloat16 *key_rows[KEYS], *value_rows[KEYS];
        for (int64_t i = 0; i < KEYS; i++) {
            const bool is_there = block + i >= seen && block + i < end;
            const int64_t place = is_there ? head.place(block + i) : 0;
            key_rows[i] = is_there ? head.keys + place : nothing;
            value_rows[i] = is_there ? head.values + place : nothing;
        }
        pack_keys(key_rows, head_dim, key_panels);
        pack_values(value_rows, head_dim, value_panel);
        // Rows before the block's first key see nothing of it.
        const int64_t begin = std::max<int64_t>(0, block - first) * group, some = rows - begin;
        tiles().product(queries + begin * depth, depth * sizeof(BFloat16), some, key_matrix, 0, KEYS / PANEL,
                        scores + begin * KEYS, KEYS);
        for (int64_t row = begin; row < rows; row++) {
            const int64_t position = first + row / group;
            const int64_t low = window > 0 ? position + 1 - window - block : 0;
            factors[row] = soften_row(scores + row * KEYS, std::max<int64_t>(0, low), position + 1 - block, scale,
                                  maxima[row], totals[row], weights + row * KEYS);
        }
        tiles().product(weights + begin * KEYS, KEYS * sizeof(BFloat16), some, value_matrix, 0, value_panels,
                        added + begin * width, width);
        for (int64_t row = begin; row < rows; row++) {
            const __m256 factor = _mm256_set1_ps(factors[row]);
            float* const to = sums + row * width;
            for (int64_t d = 0; d < width; d += 8)
                _mm256_storeu_ps(to + d, _mm256_fmadd_ps(_mm256_loadu_ps(to + d), factor,
                                                         _mm256_loadu_ps(added + row * width + d)));
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        const __m256 norm = _mm256_set1_ps(1.0f / totals[row]);
        BFloat16* const to = out + row / group * out_token_stride + row % group * head_dim;
        for (int64_t d = 0; d < head_dim; d += 8)
            store8(to + d, _mm256_mul_ps(_mm256_loadu_ps(sums + row * width + d), norm));
    }
}

}  // namespace pdq
