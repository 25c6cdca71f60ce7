// out = x @ weight.T + bias in bfloat16, with the weight in panels: the products of tiles.h, dealt out to the team.

#include <algorithm>
#include <cstring>

#include "quantized_row.h"
#include "scratch.h"
#include "team.h"
#include "tiles.h"

#include "simd.h"

namespace pdq {
namespace {

constexpr int64_t ROWS_AT_ONCE = 256, PANELS_AT_ONCE = 6;  // whose sums stay in the second-level cache
constexpr int64_t ROWS_OF_A_TASK = 16;  // that are made ready

struct Linear {
    const uint16_t* x;
    int64_t x_stride;
    const Matrix& matrix;
    const uint16_t* bias;
    uint16_t* out;
    int64_t rows;

    bool takes_x_as_it_is() const { return matrix.kind == BF16 && matrix.ins % GROUP == 0; }

    int64_t row_bytes() const {
        if (takes_x_as_it_is()) return x_stride * 2;
        return matrix.kind == BF16 ? matrix.groups() * GROUP * 2 : quantized_row_bytes(matrix.ins);
    }

    // A row as the product takes it.
    void prepare(int64_t row, uint8_t* to) const {
        const uint16_t* from = x + row * x_stride;
        if (matrix.kind != BF16) return tiles().quantize_row(from, matrix.ins, to);
        std::memcpy(to, from, matrix.ins * 2);
        std::memset(to + matrix.ins * 2, 0, row_bytes() - matrix.ins * 2);
    }

    void finish(const float* sums, int64_t stride, int64_t row, int64_t count, int64_t panel, int64_t panels) const {
        const int64_t first = panel * PANEL, width = std::min(panels * PANEL, matrix.outs - first);
        for (int64_t r = 0; r < count; r++) {
            auto* to = reinterpret_cast<BFloat16*>(out) + (row + r) * matrix.outs + first;
            const auto* with = reinterpret_cast<const BFloat16*>(bias) + first;
            for (int64_t i = 0; i < width; i += 8) {
                const int64_t left = width - i;
                __m256 sum = load8(sums + r * stride + i);
                if (left >= 8) {
                    store8(to + i, bias ? _mm256_add_ps(sum, load8(with + i)) : sum);
                } else {
                    store_part(to + i, bias ? _mm256_add_ps(sum, load_part(with + i, left)) : sum, left);
                }
            }
        }
    }

    // All rows with one task's panels.
    void panels(const uint8_t* prepared, int64_t task) const {
        thread_local Scratch scratch;
        constexpr int64_t stride = PANELS_AT_ONCE * PANEL;
        scratch.reserve(Scratch::bytes_of<float>(ROWS_AT_ONCE * stride));
        auto* const sums = scratch.take<float>(ROWS_AT_ONCE * stride);
        const int64_t panel = task * PANELS_AT_ONCE, panels = std::min(PANELS_AT_ONCE, matrix.num_panels() - panel);
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            const int64_t count = std::min(ROWS_AT_ONCE, rows - row);
            tiles().product(prepared + row * row_bytes(), row_bytes(), count, matrix, panel, panels, sums, stride);
            finish(sums, stride, row, count, panel, panels);
        }
    }

    void run() const {
        thread_local Scratch scratch;
        const int64_t bytes = row_bytes();
        scratch.reserve(takes_x_as_it_is() ? 0 : rows * bytes);
        auto* const made = takes_x_as_it_is() ? nullptr : scratch.take<uint8_t>(rows * bytes);
        const uint8_t* const prepared = made ? made : reinterpret_cast<const uint8_t*>(x);
        const int64_t weights = matrix.num_panels() * matrix.panel_bytes();
        const int64_t tasks = (matrix.num_panels() + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
        Team::of_process().run([&](Crew& crew) {
            if (made)
                crew.each((rows + ROWS_OF_A_TASK - 1) / ROWS_OF_A_TASK, [&](int64_t i) {
                    for (int64_t row = i * ROWS_OF_A_TASK; row < std::min(rows, (i + 1) * ROWS_OF_A_TASK); row++)
                        prepare(row, made + row * bytes);
                });
            crew.each(tasks, [&](int64_t task) { panels(prepared, task); });
        }, std::max(weights, matrix.ins * matrix.outs * rows / 8));
    }
};

}  // namespace
}  // namespace pdq

// x: rows of bfloat16, `x_stride` elements apart; bias: [outs] or null; out: [rows][outs].
PDQ_EXPORT void pdq_linear(const uint16_t* x, int64_t x_stride, const pdq::Matrix* matrix, const uint16_t* bias,
                           uint16_t* out, int64_t rows) {
    pdq::Linear{x, x_stride, *matrix, bias, out, rows}.run();
}

// Rows as products with INT8 and INT4 take them, `pdq_quantized_row_bytes` each.
PDQ_EXPORT int64_t pdq_quantized_row_bytes(int64_t ins) { return pdq::quantized_row_bytes(ins); }

PDQ_EXPORT void pdq_quantize_rows(const uint16_t* x, int64_t x_stride, int64_t rows, int64_t ins, uint8_t* out) {
    for (int64_t row = 0; row < rows; row++)
        pdq::tiles().quantize_row(x + row * x_stride, ins, out + row * pdq::quantized_row_bytes(ins));
}

// A matrix as BF16 panels.
PDQ_EXPORT void pdq_expand(const pdq::Matrix* matrix, uint16_t* out) {
    pdq::tiles().expand(*matrix, 0, matrix->num_panels(), out);
}
