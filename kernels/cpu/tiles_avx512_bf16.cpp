// BF16 panels with AVX512-BF16: one instruction multiplies 16 outputs by a pair of inputs.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tiles_of.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")

#include "row_blocks.h"

namespace pdq {
namespace {

inline __m512bh pair_of(const char* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

struct Bf16Product {
    // 8 rows and 3 panels: 24 sums, 3 weights and a row's pair are what 32 registers hold.
    static constexpr int MAX_ROWS = 8;
    static constexpr int64_t STEP_INPUTS = 2, INPUT_BYTES = 2;
    // One panel at a time hides no latency here: 16 rows of 576 inputs make 131 GFLOP/s, three at a time 190.
    static constexpr int64_t FEW_TILES = 0;
    static constexpr bool SHARES_AHEAD = true;
    static constexpr int panels_at_once(int, bool is_many) { return is_many ? 3 : 1; }

    const uint16_t* x;
    int64_t x_stride;  // elements
    const uint16_t* panels;
    int64_t pairs;  // of a panel
    float* c;
    int64_t c_stride;

    template <int ROWS, int PANELS, class A>
    void tile(int64_t row, int64_t panel, int64_t first_pair, int64_t last_pair, A ahead) const {
        const int64_t size = pairs * 2 * PANEL;
        const uint16_t* weight = panels + panel * size + first_pair * 2 * PANEL;
        float* to = c + row * c_stride + panel * PANEL;
        __m512 sums[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++)
                sums[r][p] = first_pair ? _mm512_loadu_ps(to + r * c_stride + p * PANEL) : _mm512_setzero_ps();
        RowPointers<ROWS> from(x + row * x_stride + 2 * first_pair, x_stride * int64_t(sizeof *x));
        for (int64_t k = first_pair; k < last_pair; k++, weight += 2 * PANEL, from.advance(2 * sizeof *x)) {
            __m512bh weights[PANELS];
            if (ahead.is_due())
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++)
                    _mm_prefetch(reinterpret_cast<const char*>(weight + p * size + ahead.steps * 2 * PANEL), _MM_HINT_T1);
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++)
                weights[p] = (__m512bh)_mm512_loadu_si512(weight + p * size);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const __m512bh pair = pair_of(from[r]);
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], weights[p], pair);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) _mm512_storeu_ps(to + r * c_stride + p * PANEL, sums[r][p]);
    }
};

}  // namespace

void avx512_bf16::bf16_product(PDQ_PRODUCT_PARAMETERS) {
    const Bf16Product product{static_cast<const uint16_t*>(x),
                              x_stride / 2,
                              reinterpret_cast<const uint16_t*>(matrix.panels + first * matrix.panel_bytes()),
                              matrix.groups() * GROUP / 2,
                              c,
                              c_stride};
    multiply(product, rows, panels, product.pairs);
}

}  // namespace pdq
