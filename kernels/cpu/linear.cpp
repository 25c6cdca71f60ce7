// out = x @ weight.T + bias in float32, with the weight in panels of 16 outputs that lie [in][16]. bfloat16 and
// integer weights: panel_linear.cpp.
//
// Every output is one chain of fused multiply-adds over k = 0, 1, ..., whatever tile it is computed in. So a row's
// result has the same bits at any number of rows and threads, and that is a promise: no k is split, no order changed.

#include <algorithm>
#include <cstdlib>

#include "simd.h"
#include "team.h"

namespace pdq {
namespace {

constexpr int64_t PANEL = 16;
// Sixteen registers: 12 sums, 2 weights, 1 broadcast x. 12 sums also hide the 4 cycles of a multiply-add.
constexpr int MAX_ROWS = 6;
// Rows whose x stays in the second-level cache beside a panel while all panels pass by.
constexpr int64_t X_BLOCK_BYTES = 256 << 10;
constexpr int64_t X_ALIGN = 16;
constexpr int64_t PREFETCH_BYTES = 1024;
constexpr int64_t PANELS_OF_A_TASK = 4;  // as many as one row takes at once

struct Pair {
    __m256 low, high;  // outputs 0..7 and 8..15
};

inline Pair weights_at(const float* panel) { return {_mm256_loadu_ps(panel), _mm256_loadu_ps(panel + 8)}; }

struct Job {
    const float* x;  // [rows][x_stride]
    int64_t x_stride;
    const float* weight;  // [panels][in][16]
    const float* bias;    // [outs] or null
    float* out;           // [rows][outs]
    int64_t rows, ins, outs;
};

inline void finish(const Job& job, int64_t row, int64_t output, __m256 sum) {
    const int64_t count = job.outs - output;
    if (count <= 0) return;
    float* to = job.out + row * job.outs + output;
    if (count >= 8) {
        if (job.bias) sum = _mm256_add_ps(sum, load8(job.bias + output));
        store8(to, sum);
    } else {
        if (job.bias) sum = _mm256_add_ps(sum, load_part(job.bias + output, count));
        store_part(to, sum, count);
    }
}

template <int ROWS, int PANELS>
void tile(const Job& job, int64_t row, int64_t panel) {
    __m256 sums[ROWS][PANELS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; p++) sums[r][p][0] = sums[r][p][1] = _mm256_setzero_ps();
    const int64_t panel_size = job.ins * PANEL;
    const float* weight = job.weight + panel * panel_size;
    const float* x = job.x + row * job.x_stride;
    for (int64_t k = 0; k < job.ins; k++) {
        Pair pairs[PANELS];
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; p++) {
            const float* at = weight + p * panel_size + k * PANEL;
            pairs[p] = weights_at(at);
            // The panels are read once each, from memory: the hardware's own prefetch stops at every page.
            if (ROWS <= 3) _mm_prefetch(reinterpret_cast<const char*>(at) + PREFETCH_BYTES, _MM_HINT_T0);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const __m256 value = _mm256_broadcast_ss(x + r * job.x_stride + k);
#pragma GCC unroll 16
            for (int p = 0; p < PANELS; p++) {
                sums[r][p][0] = _mm256_fmadd_ps(value, pairs[p].low, sums[r][p][0]);
                sums[r][p][1] = _mm256_fmadd_ps(value, pairs[p].high, sums[r][p][1]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 16
            for (int half = 0; half < 2; half++)
                finish(job, row + r, (panel + p) * PANEL + half * 8, sums[r][p][half]);
}

// ROWS rows of panels [first, end), as many at once as there are registers for.
template <int ROWS>
void panels(const Job& job, int64_t row, int64_t first, int64_t end) {
    constexpr int AT_ONCE = ROWS == 1 ? 4 : ROWS <= 3 ? 2 : 1;
    for (; first + AT_ONCE <= end; first += AT_ONCE) tile<ROWS, AT_ONCE>(job, row, first);
    for (; first < end; first++) tile<ROWS, 1>(job, row, first);
}

void rows_of_panels(const Job& job, int64_t row, int64_t num_rows, int64_t first, int64_t end) {
    switch (num_rows) {
        case 1: return panels<1>(job, row, first, end);
        case 2: return panels<2>(job, row, first, end);
        case 3: return panels<3>(job, row, first, end);
        case 4: return panels<4>(job, row, first, end);
        case 5: return panels<5>(job, row, first, end);
        case 6: return panels<6>(job, row, first, end);
    }
}

// Rows [row, end) of panels [first, last): tiles of nearly equal height, a panel for all of them before the next.
void block(const Job& job, int64_t row, int64_t end, int64_t first, int64_t last) {
    const int64_t rows = end - row, tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    if (tiles == 1) return rows_of_panels(job, row, rows, first, last);
    for (int64_t panel = first; panel < last; panel++)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t begin = row + rows * t / tiles;
            rows_of_panels(job, begin, row + rows * (t + 1) / tiles - begin, panel, panel + 1);
        }
}

// x as floats, rows apart by a stride that is no power of two: rows a page apart would share cache sets.
class Rows {
  public:
    ~Rows() { std::free(memory_); }
    float* of(int64_t floats) {
        if (floats > size_) {
            std::free(memory_);
            memory_ = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
            size_ = floats;
        }
        return memory_;
    }

  private:
    float* memory_ = nullptr;
    int64_t size_ = 0;
};

void linear(const float* x, int64_t x_stride, const float* weight, const float* bias, float* out, int64_t rows,
            int64_t ins, int64_t outs) {
    thread_local Rows scratch;
    const int64_t stride = (ins + X_ALIGN - 1) / X_ALIGN * X_ALIGN + X_ALIGN;
    const int64_t num_panels = (outs + PANEL - 1) / PANEL;
    float* const floats = scratch.of(rows * stride);
    const Job job{floats, stride, weight, bias, out, rows, ins, outs};
    const int64_t block_rows =
        std::max<int64_t>(2, X_BLOCK_BYTES / (stride * int64_t(sizeof(float)) * MAX_ROWS)) * MAX_ROWS;
    for (int64_t row = 0; row < rows; row++) std::memcpy(floats + row * stride, x + row * x_stride, ins * sizeof *x);
    const auto work = [&](Crew& crew) {
        crew.each((num_panels + PANELS_OF_A_TASK - 1) / PANELS_OF_A_TASK, [&](int64_t task) {
            const int64_t first = task * PANELS_OF_A_TASK, last = std::min(num_panels, first + PANELS_OF_A_TASK);
            for (int64_t row = 0; row < rows; row += block_rows)
                block(job, row, std::min(rows, row + block_rows), first, last);
        });
    };
    Team::of_process().run(work, std::max(ins * outs * 4, ins * outs * rows / 2));
}

void pack(const float* weight, float* packed, int64_t ins, int64_t outs) {
    Team::of_process().run([&](Crew& crew) {
        crew.each((outs + PANEL - 1) / PANEL, [&](int64_t panel) {
            float* to = packed + panel * ins * PANEL;
            std::memset(to, 0, ins * PANEL * sizeof(float));
            for (int64_t i = 0; i < std::min(PANEL, outs - panel * PANEL); i++) {
                const float* from = weight + (panel * PANEL + i) * ins;
                for (int64_t k = 0; k < ins; k++) to[k * PANEL + i] = from[k];
            }
        });
    });
}

}  // namespace
}  // namespace pdq

PDQ_EXPORT void pdq_linear_f32(const float* x, int64_t x_stride, const float* weight, const float* bias, float* out,
                               int64_t rows, int64_t ins, int64_t outs) {
    pdq::linear(x, x_stride, weight, bias, out, rows, ins, outs);
}

PDQ_EXPORT void pdq_linear_pack_f32(const float* weight, float* packed, int64_t ins, int64_t outs) {
    pdq::pack(weight, packed, ins, outs);
}
