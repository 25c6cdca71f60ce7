// out = x @ weight.T + bias in bfloat16, with the weight in panels: the products of tiles.h, shared out to threads.

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "quantized_row.h"
#include "tiles.h"

#include "simd.h"

namespace pdq {
namespace {

constexpr int64_t ROWS_AT_ONCE = 256, PANELS_AT_ONCE = 6;  // whose sums stay in the second-level cache
// What one thread does in the time that waking a second one costs.
constexpr double WAKE_S = 1e-4, BYTES_PER_S = 25e9, MULTIPLY_ADDS_PER_S = 100e9;

class Scratch {
  public:
    ~Scratch() { std::free(memory_); }

    // Valid until the next call.
    void* of(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + 63) / 64 * 64;
            memory_ = std::aligned_alloc(64, size_);
        }
        return memory_;
    }

  private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

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

    void panels(const uint8_t* prepared, int64_t first, int64_t last) const {
        thread_local Scratch scratch;
        constexpr int64_t stride = PANELS_AT_ONCE * PANEL;
        auto* sums = static_cast<float*>(scratch.of(std::min(rows, ROWS_AT_ONCE) * stride * 4));
        for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
            const int64_t count = std::min(ROWS_AT_ONCE, rows - row);
            for (int64_t panel = first; panel < last; panel += PANELS_AT_ONCE) {
                const int64_t panels = std::min(PANELS_AT_ONCE, last - panel);
                tiles().product(prepared + row * row_bytes(), row_bytes(), count, matrix, panel, panels, sums, stride);
                finish(sums, stride, row, count, panel, panels);
            }
        }
    }

    int threads_for(int threads) const {
        const double bytes = static_cast<double>(matrix.num_panels() * matrix.panel_bytes());
        const double products = static_cast<double>(matrix.ins * matrix.outs) * static_cast<double>(rows);
        return std::max(bytes / BYTES_PER_S, products / MULTIPLY_ADDS_PER_S) < WAKE_S ? 1 : threads;
    }

    void run(int threads) const {
        thread_local Scratch scratch;
        const int64_t bytes = row_bytes(), num_panels = matrix.num_panels();
        auto* made = takes_x_as_it_is() ? nullptr : static_cast<uint8_t*>(scratch.of(rows * bytes));
        const uint8_t* prepared = made ? made : reinterpret_cast<const uint8_t*>(x);
        threads = threads_for(threads);
        const bool is_shared = rows >= 16;  // making a few rows ready is less than a barrier
        if (made && !is_shared)
            for (int64_t row = 0; row < rows; row++) prepare(row, made + row * bytes);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            if (made && is_shared) {
#pragma omp for schedule(static)
                for (int64_t row = 0; row < rows; row++) prepare(row, made + row * bytes);
            }
            const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
            panels(prepared, num_panels * me / team, num_panels * (me + 1) / team);
        }
    }
};

}  // namespace
}  // namespace pdq

// x: rows of bfloat16, `x_stride` elements apart; bias: [outs] or null; out: [rows][outs].
PDQ_EXPORT void pdq_linear(const uint16_t* x, int64_t x_stride, const pdq::Matrix* matrix, const uint16_t* bias,
                           uint16_t* out, int64_t rows, int threads) {
    pdq::Linear{x, x_stride, *matrix, bias, out, rows}.run(threads);
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
