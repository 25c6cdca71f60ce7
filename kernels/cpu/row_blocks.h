// A product cut into tiles of a few rows and panels that registers hold. Include it after the target pragma: what is
// here is compiled for the instruction set of the file that includes it, and is that file's own.
#pragma once

namespace pdq {
namespace {

// Steps of a chain after which many rows come back to its start, so that the weights stay in the first caches.
constexpr int64_t MAX_STEPS = 1024;

template <class P, int ROWS>
void rows_of_tiles(const P& product, int64_t row, int64_t first_panel, int64_t end_panel, int64_t first_step,
                   int64_t last_step) {
    constexpr int AT_ONCE = P::panels_at_once(ROWS);
    int64_t panel = first_panel;
    for (; panel + AT_ONCE <= end_panel; panel += AT_ONCE)
        product.template tile<ROWS, AT_ONCE>(row, panel, first_step, last_step);
    for (; panel < end_panel; panel++) product.template tile<ROWS, 1>(row, panel, first_step, last_step);
}

template <class P, int ROWS = P::MAX_ROWS>
void rows_of_tiles(const P& product, int64_t num_rows, int64_t row, int64_t first_panel, int64_t end_panel,
                   int64_t first_step, int64_t last_step) {
    if (num_rows == ROWS) return rows_of_tiles<P, ROWS>(product, row, first_panel, end_panel, first_step, last_step);
    if constexpr (ROWS > 1)
        rows_of_tiles<P, ROWS - 1>(product, num_rows, row, first_panel, end_panel, first_step, last_step);
}

// All rows of a group of panels before the next group, in tiles of nearly equal height.
template <class P>
void multiply(const P& product, int64_t rows, int64_t panels, int64_t steps) {
    const int64_t tiles = (rows + P::MAX_ROWS - 1) / P::MAX_ROWS;
    if (tiles == 1) return rows_of_tiles(product, rows, 0, 0, panels, 0, steps);
    constexpr int64_t AT_ONCE = P::panels_at_once(P::MAX_ROWS);
    for (int64_t panel = 0; panel < panels; panel += AT_ONCE)
        for (int64_t step = 0; step < steps; step += MAX_STEPS)
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t begin = rows * t / tiles, height = rows * (t + 1) / tiles - begin;
                rows_of_tiles(product, height, begin, panel, std::min(panels, panel + AT_ONCE), step,
                              std::min(steps, step + MAX_STEPS));
            }
}

}  // namespace
}  // namespace pdq
