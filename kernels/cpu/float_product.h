// BF16 panels where no instruction multiplies bfloat16: pairs become floats by a shift and a mask. Include it after the
// target pragma and a `Lanes`.
#pragma once

#include <cstdlib>

#include "row_blocks.h"

namespace pdq {
namespace {

// Rows of x as floats. Apart by a stride that is no power of two: rows a page apart would share cache sets.
class FloatRows {
  public:
    ~FloatRows() { std::free(memory_); }

    // Valid until the next call.
    const float* of(const uint16_t* x, int64_t x_stride, int64_t rows, int64_t inputs) {
        const int64_t floats = rows * stride(inputs);
        if (floats > size_) {
            std::free(memory_);
            memory_ = static_cast<float*>(std::aligned_alloc(64, floats * sizeof(float)));
            size_ = floats;
        }
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < inputs; i++) {
                const uint32_t bits = uint32_t(x[row * x_stride + i]) << 16;
                std::memcpy(memory_ + row * stride(inputs) + i, &bits, sizeof bits);
            }
        return memory_;
    }

    static int64_t stride(int64_t inputs) { return inputs + 16; }

  private:
    float* memory_ = nullptr;
    int64_t size_ = 0;
};

// Rows whose floats stay in the second-level cache while a few panels pass by.
constexpr int64_t X_BLOCK_BYTES = 256 << 10;

template <class Lanes, int TILE_ROWS, int MANY_PANELS>
struct FloatProduct {
    static constexpr int MAX_ROWS = TILE_ROWS;
    static constexpr int64_t STEP_INPUTS = 2, INPUT_BYTES = 4, FEW_TILES = 4;
    static constexpr bool SHARES_AHEAD = false;
    // Four chains of multiply-adds are slower than memory.
    static constexpr int panels_at_once(int rows, bool is_many) { return is_many ? MANY_PANELS : rows <= 2 ? 2 : 1; }

    const float* x;
    int64_t x_stride;
    const uint16_t* panels;
    int64_t pairs;
    float* c;
    int64_t c_stride;

    template <int ROWS, int PANELS>
    void tile(int64_t row, int64_t panel, int64_t first_pair, int64_t last_pair, Ahead) const {
        const int64_t size = pairs * 2 * PANEL;
        const uint16_t* at = panels + panel * size + first_pair * 2 * PANEL;
        RowPointers<ROWS> from(x + row * x_stride + 2 * first_pair, x_stride * int64_t(sizeof *x));
        float* to = c + row * c_stride + panel * PANEL;
        typename Lanes::Floats sums[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++)
                sums[r][p] = first_pair ? Lanes::load(to + r * c_stride + p * PANEL) : Lanes::zero();
        for (int64_t k = first_pair; k < last_pair; k++, at += 2 * PANEL, from.advance(2 * sizeof *x)) {
#pragma GCC unroll 2
            for (int place = 0; place < 2; place++) {
                typename Lanes::Floats weights[PANELS];
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; p++) {
                    const auto both = Lanes::bits(at + p * size);
                    weights[p] = place ? Lanes::second(both) : Lanes::first(both);
                }
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
                    const auto value = Lanes::everywhere(reinterpret_cast<const float*>(from[r])[place]);
#pragma GCC unroll 16
                    for (int p = 0; p < PANELS; p++) sums[r][p] = Lanes::multiply_add(value, weights[p], sums[r][p]);
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) Lanes::store(to + r * c_stride + p * PANEL, sums[r][p]);
    }
};

template <class Lanes, int TILE_ROWS, int MANY_PANELS>
void float_product(const void* x, int64_t x_stride, int64_t rows, const Matrix& matrix, int64_t first, int64_t panels,
                   float* c, int64_t c_stride) {
    thread_local FloatRows scratch;
    const int64_t inputs = matrix.groups() * GROUP, stride = FloatRows::stride(inputs);
    const int64_t block =
        std::max<int64_t>(1, X_BLOCK_BYTES / (stride * int64_t(sizeof(float)) * TILE_ROWS)) * TILE_ROWS;
    for (int64_t row = 0; row < rows; row += block) {
        const int64_t count = std::min(block, rows - row);
        const auto* from = reinterpret_cast<const uint16_t*>(static_cast<const char*>(x) + row * x_stride);
        const FloatProduct<Lanes, TILE_ROWS, MANY_PANELS> product{
            scratch.of(from, x_stride / 2, count, inputs),
            stride,
            reinterpret_cast<const uint16_t*>(matrix.panels + first * matrix.panel_bytes()),
            inputs / 2,
            c + row * c_stride,
            c_stride};
        multiply(product, count, panels, product.pairs);
    }
}

}  // namespace
}  // namespace pdq
