// BF16 panels with AMX: one instruction multiplies 16 rows by 32 inputs of 16 outputs. No result depends on the other
// rows of a tile.

#include <immintrin.h>

#include <algorithm>

#include "tiles_of.h"

#ifndef PDQ_EMULATED_TILES
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-bf16")
#endif

#include "amx.h"

namespace pdq {
namespace {

constexpr int64_t STEP_BYTES = 1024, BYTES_AHEAD = 2 * STEP_BYTES;  // a tile of weights

// Two tiles of rows by two panels: sums in 0 to 3, rows in 4 and 5, weights in 6 and 7.
struct AmxProduct {
    const char* x;
    int64_t x_stride;
    const char* panels;
    int64_t steps, panel_bytes;
    float* c;
    int64_t c_stride;

    // Tiles of so many rows, at most 16.
    static void configure_rows(int64_t first, int64_t second) {
        TileConfig config;
        for (int tile : {0, 1, 4}) config.set(tile, first);
        for (int tile : {2, 3, 5}) config.set(tile, second);
        for (int tile : {6, 7}) config.set(tile, TILE_ROWS);
        configure(config);
    }

    template <int ROW_TILES, int PANELS>
    void tile(int64_t row, int64_t panel) const {
        const char *from = x + row * x_stride, *weight = panels + panel * panel_bytes;
        constexpr bool HAS_ROWS = ROW_TILES == 2, HAS_PANEL = PANELS == 2;
        clear<0>();
        if constexpr (HAS_PANEL) clear<1>();
        if constexpr (HAS_ROWS) clear<2>();
        if constexpr (HAS_ROWS && HAS_PANEL) clear<3>();
        for (int64_t k = 0; k < steps; k++, from += GROUP * 2, weight += STEP_BYTES) {
            load<4>(from, x_stride);
            load<6>(weight, 64);
            multiply_tiles<0, 4, 6>();
            if constexpr (HAS_PANEL) {
                load<7>(weight + panel_bytes, 64);
                multiply_tiles<1, 4, 7>();
            }
            if constexpr (HAS_ROWS) {
                load<5>(from + TILE_ROWS * x_stride, x_stride);
                multiply_tiles<2, 5, 6>();
                if constexpr (HAS_PANEL) multiply_tiles<3, 5, 7>();
            } else {
                // As fast as memory: a load of a tile is 16 lines at once, which the hardware's prefetch comes too late for.
                for (int panel_ahead = 0; panel_ahead < PANELS; panel_ahead++)
                    for (int64_t line = 0; line < STEP_BYTES; line += 64)
                        _mm_prefetch(weight + panel_ahead * panel_bytes + BYTES_AHEAD + line, _MM_HINT_T0);
            }
        }
        float* to = c + row * c_stride + panel * PANEL;
        store<0>(to, c_stride * 4);
        if constexpr (HAS_PANEL) store<1>(to + PANEL, c_stride * 4);
        to += TILE_ROWS * c_stride;
        if constexpr (HAS_ROWS) store<2>(to, c_stride * 4);
        if constexpr (HAS_ROWS && HAS_PANEL) store<3>(to + PANEL, c_stride * 4);
    }

    // Rows [first, last), ROW_TILES tiles of them at once; the last may be lower, as configured.
    template <int ROW_TILES>
    void rows(int64_t first, int64_t last, int64_t num_panels) const {
        for (int64_t panel = 0; panel < num_panels; panel += 2)
            for (int64_t row = first; row < last; row += ROW_TILES * TILE_ROWS)
                panel + 1 < num_panels ? tile<ROW_TILES, 2>(row, panel) : tile<ROW_TILES, 1>(row, panel);
    }
};

}  // namespace

void amx::bf16_product(PDQ_PRODUCT_PARAMETERS) {
    const AmxProduct product{static_cast<const char*>(x),
                             x_stride,
                             reinterpret_cast<const char*>(matrix.panels) + first * matrix.panel_bytes(),
                             matrix.groups(),
                             matrix.panel_bytes(),
                             c,
                             c_stride};
    const int64_t whole = rows / (2 * TILE_ROWS) * 2 * TILE_ROWS, rest = rows - whole;
    if (whole) {
        AmxProduct::configure_rows(TILE_ROWS, TILE_ROWS);
        product.rows<2>(0, whole, panels);
    }
    if (rest > TILE_ROWS) {
        AmxProduct::configure_rows(TILE_ROWS, rest - TILE_ROWS);
        product.rows<2>(whole, rows, panels);
    } else if (rest) {
        AmxProduct::configure_rows(rest, 0);
        product.rows<1>(whole, rows, panels);
    }
    // Others in this thread may configure tiles too (oneDNN does), and a thread without tiles is switched faster.
    release();
}

}  // namespace pdq
