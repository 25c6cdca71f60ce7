// BF16 panels with AVX512-BF16: one instruction multiplies 16 outputs by a pair of inputs.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tiles_of.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")

#include "row_blocks.h"

namespace pdq {
namespace {

// 24 sums, 3 weights and a row's pair: what 32 registers hold, and 8 loads of x for 24 products.
constexpr int MAX_ROWS = 8;
constexpr int64_t PAIRS_AHEAD = 16;  // a cache line each

inline __m512bh pair_of(const uint16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

struct Bf16Product {
    static constexpr int MAX_ROWS = pdq::MAX_ROWS;
    // A few rows are as fast as memory, and four panels at once are as many streams as the hardware follows.
    static constexpr int panels_at_once(int rows) { return rows <= 5 ? 4 : 3; }

    const uint16_t* x;
    int64_t x_stride;  // elements
    const uint16_t* panels;
    int64_t pairs;  // of a panel
    float* c;
    int64_t c_stride;

    template <int ROWS, int PANELS>
    void tile(int64_t row, int64_t panel, int64_t first_pair, int64_t last_pair) const {
        const int64_t size = pairs * 2 * PANEL;
        const uint16_t* weight = panels + panel * size;
        const uint16_t* from = x + row * x_stride;
        float* to = c + row * c_stride + panel * PANEL;
        __m512 sums[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++)
                sums[r][p] = first_pair ? _mm512_loadu_ps(to + r * c_stride + p * PANEL) : _mm512_setzero_ps();
        auto steps = [&](int64_t begin, int64_t end, int64_t ahead) {
            for (int64_t k = begin; k < end; k++) {
                __m512bh weights[PANELS];
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++) {
                    const uint16_t* at = weight + p * size + k * 2 * PANEL;
                    weights[p] = (__m512bh)_mm512_loadu_si512(at);
                    if (ROWS <= 5) _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
                }
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
                    const __m512bh pair = pair_of(from + r * x_stride + 2 * k);
#pragma GCC unroll 16
                    for (int p = 0; p < PANELS; p++) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], weights[p], pair);
                }
            }
        };
        // The hardware's own prefetch knows no end of a panel: what follows is the same place of the next group's.
        const int64_t turn = std::max(first_pair, last_pair - PAIRS_AHEAD);
        steps(first_pair, turn, PAIRS_AHEAD * 2 * PANEL);
        steps(turn, last_pair, PAIRS_AHEAD * 2 * PANEL + (last_pair == pairs ? (PANELS - 1) * size : 0));
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) _mm512_storeu_ps(to + r * c_stride + p * PANEL, sums[r][p]);
    }
};

}  // namespace

void avx512_bf16::bf16_product(const void* x, int64_t x_stride, int64_t rows, const Matrix& matrix, int64_t first,
                               int64_t panels, float* c, int64_t c_stride) {
    const Bf16Product product{static_cast<const uint16_t*>(x),
                              x_stride / 2,
                              reinterpret_cast<const uint16_t*>(matrix.panels + first * matrix.panel_bytes()),
                              matrix.groups() * GROUP / 2,
                              c,
                              c_stride};
    multiply(product, rows, panels, product.pairs);
}

}  // namespace pdq
