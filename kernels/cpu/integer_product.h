// INT8 and INT4 panels times quantized rows. Include it after the target pragma, a `Lanes`, and a `Dots`:
//
//     static Bits int8_start(int32_t offset)      Bits int8_step(Bits sums, Bits weights, Bits x)
//     static Bits int4_start()                    Bits int4_step(Bits sums, Bits nibbles, Bits x)
//     static Bits int4_end(Bits sums)             all on 16 lanes of four bytes each
//
// The sums of a group are exact integers, and the floats come in one order of operations that fuse or do not:
//     c = fma(float(sum), scale * x_scale, c), and for INT4 then c = fma(minimum, x_sum, c)
// so every instruction set gives the same bits.
#pragma once

#include "quantized_row.h"
#include "row_blocks.h"

namespace pdq {
namespace {

template <class Lanes, class Dots, Kind KIND, int TILE_ROWS>
struct IntegerProduct {
    static constexpr int MAX_ROWS = TILE_ROWS;
    static constexpr int64_t STEP_INPUTS = GROUP, INPUT_BYTES = 1, FEW_TILES = 4;
    static constexpr bool SHARES_AHEAD = false;
    static constexpr int panels_at_once(int, bool) { return 1; }

    static constexpr int VECTORS = KIND == INT8 ? 8 : 4;  // of 64 bytes in a group
    static constexpr int64_t GROUP_BYTES = KIND == INT8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;

    const uint8_t* x;
    int64_t x_stride;
    const uint8_t* panels;
    int64_t groups, panel_bytes;
    float* c;
    int64_t c_stride;

    template <int ROWS, int PANELS>
    void tile(int64_t row, int64_t panel, int64_t first_group, int64_t last_group, Ahead ahead) const {
        using Bits = typename Lanes::Bits;
        const uint8_t* weight = panels + panel * panel_bytes;
        float* to = c + row * c_stride + panel * PANEL;
        QuantizedRow<const uint8_t> rows[ROWS];
        typename Lanes::Floats results[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            rows[r] = {x + (row + r) * x_stride, groups};
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++)
                results[r][p] = first_group ? Lanes::load(to + r * c_stride + p * PANEL) : Lanes::zero();
        }
        for (int64_t g = first_group; g < last_group; g++) {
            Bits sums[ROWS][PANELS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++)
                    sums[r][p] = KIND == INT8 ? Dots::int8_start(rows[r].offsets()[g]) : Dots::int4_start();
            const uint8_t* at = weight + g * GROUP_BYTES;
            if (ROWS > 3)
#pragma GCC unroll 16
                for (int64_t byte = 0; byte < GROUP_BYTES; byte += 64)
                    _mm_prefetch(reinterpret_cast<const char*>(at + ahead.steps * GROUP_BYTES + byte), _MM_HINT_T0);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) {
                Bits bytes[PANELS];
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++)
                    bytes[p] = Lanes::bits(at + p * panel_bytes + j * 64);
                if constexpr (KIND == INT8) {
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; r++) {
                        const Bits four = four_of(rows[r].values + g * GROUP + 4 * j);
#pragma GCC unroll 16
                        for (int p = 0; p < PANELS; p++) sums[r][p] = Dots::int8_step(sums[r][p], bytes[p], four);
                    }
                } else {
#pragma GCC unroll 2
                    for (int place = 0; place < 2; place++)
#pragma GCC unroll 16
                        for (int r = 0; r < ROWS; r++) {
                            const Bits four = four_of(rows[r].values + g * GROUP + 8 * j + 4 * place);
#pragma GCC unroll 16
                            for (int p = 0; p < PANELS; p++) {
                                const Bits nibbles =
                                    place ? Lanes::high_nibbles(bytes[p]) : Lanes::low_nibbles(bytes[p]);
                                sums[r][p] = Dots::int4_step(sums[r][p], nibbles, four);
                            }
                        }
                }
            }
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) {
                const auto* halves = reinterpret_cast<const uint16_t*>(at + p * panel_bytes + VECTORS * 64);
                const auto scale = Lanes::halves(halves);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
                    const Bits sum = KIND == INT8 ? sums[r][p] : Dots::int4_end(sums[r][p]);
                    const auto both = Lanes::multiply(scale, Lanes::everywhere(rows[r].scales()[g]));
                    results[r][p] = Lanes::multiply_add(Lanes::to_floats(sum), both, results[r][p]);
                }
                if constexpr (KIND == INT4) {
                    const auto minimum = Lanes::halves(halves + PANEL);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; r++)
                        results[r][p] =
                            Lanes::multiply_add(minimum, Lanes::everywhere(rows[r].sums()[g]), results[r][p]);
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) Lanes::store(to + r * c_stride + p * PANEL, results[r][p]);
    }

  private:
    static typename Lanes::Bits four_of(const uint8_t* values) {
        int32_t four;
        std::memcpy(&four, values, sizeof four);
        return Lanes::everywhere(four);
    }
};

template <class Lanes, class Dots, Kind KIND, int TILE_ROWS>
void integer_product(const void* x, int64_t x_stride, int64_t rows, const Matrix& matrix, int64_t first, int64_t panels,
                     float* c, int64_t c_stride) {
    const IntegerProduct<Lanes, Dots, KIND, TILE_ROWS> product{
        static_cast<const uint8_t*>(x),
        x_stride,
        matrix.panels + first * matrix.panel_bytes(),
        matrix.groups(),
        matrix.panel_bytes(),
        c,
        c_stride};
    multiply(product, rows, panels, product.groups);
}

}  // namespace
}  // namespace pdq
