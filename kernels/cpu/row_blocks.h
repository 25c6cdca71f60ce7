// A product cut into tiles of a few rows and panels that registers hold. Include it after the target pragma: what is
// here is compiled for the instruction set of the file that includes it, and is that file's own.
//
// Few rows take one panel at a time, so that memory is read as one stream: the hardware's own prefetch follows it at
// the speed of memory (Zen 4: 31 to 33 GB/s of 32; four panels at once 14 to 22, prefetch instructions 22 to 29). With
// many rows the same x serves several panels.
#pragma once

namespace pdq {
namespace {

// A tile's rows by a pointer to every third: an address may add a stride, or two, for nothing, but a pointer for each
// of eight rows is more than there are registers for.
template <int ROWS>
class RowPointers {
  public:
    RowPointers(const void* first, int64_t stride_bytes) : stride_(stride_bytes) {
        for (int i = 0; i < BASES; i++) bases_[i] = static_cast<const char*>(first) + 3 * i * stride_bytes;
    }

    const char* operator[](int row) const { return bases_[row / 3] + row % 3 * stride_; }

    void advance(int64_t bytes) {
#pragma GCC unroll 8
        for (int i = 0; i < BASES; i++) {
            bases_[i] += bytes;
            asm("" : "+r"(bases_[i]));  // or the compiler sees that it could keep one for each row
        }
    }

  private:
    static constexpr int BASES = (ROWS + 2) / 3;
    const char* bases_[BASES];
    int64_t stride_;
};

// Up to here the x of one tile stays in the first cache beside the weights that stream by. Zen 4, 576 inputs: 8 rows take
// 58 us one panel at a time and 54 three at a time; 1536 inputs, 24 KB of x: 110 and 75.
constexpr int64_t ONE_TILE_BYTES = 10 << 10;
// Inputs after which the next rows come to the same weights. Of few rows all stay in the first cache beside these
// weights (16 rows of 576 inputs: 202 GFLOP/s without, 230 with), of many rows the weights alone, in the second.
constexpr int64_t FEW_ROWS_INPUTS = 256, MANY_ROWS_INPUTS = 2048;

// What a tile fetches for later: at every step the weights `steps` steps on, or nothing when that is 0.
struct Ahead {
    int64_t steps;

    bool is_due() const { return steps; }
};

// The same at its `left`th step and every `every`th after it, when others fetch what is between.
struct SharedAhead {
    int64_t steps, every, left;

    bool is_due() {
        if (--left) return false;
        left = every;
        return true;
    }
};

// Of P: MAX_ROWS, STEP_INPUTS, INPUT_BYTES, FEW_TILES (up to which rows are few), panels_at_once(rows, is_many),
// SHARES_AHEAD, and tile<ROWS, PANELS>(row, panel, first step, last step, ahead), which goes on from c when the first step
// is not 0, and fetches what `ahead` says: computing takes about as long as reading here, and would wait for it. Of many
// rows the last ones fetch the next panels, whose first rows would else compute at the speed of memory, or all of them do
// their share, so that memory is read all the time. All linears of SmolLM2 in BF16 on Zen 4, in ms:
//                      nothing ahead   by the last rows   by all rows
//     16 rows, a core           24.6               21.9          21.1
//     12 rows, a core           20.9               17.5          16.0
//     16 rows, two cores                           13.9          12.9
//     12 rows, two cores                           11.3          10.4
template <class P, int ROWS, bool IS_MANY, class A>
void row_of_tiles(const P& product, int64_t row, int64_t panel, int64_t end_panel, int64_t step, int64_t end_step, A ahead) {
    constexpr int AT_ONCE = P::panels_at_once(ROWS, IS_MANY);
    for (; panel + AT_ONCE <= end_panel; panel += AT_ONCE)
        product.template tile<ROWS, AT_ONCE>(row, panel, step, end_step, ahead);
    for (; panel < end_panel; panel++) product.template tile<ROWS, 1>(row, panel, step, end_step, ahead);
}

template <class P, bool IS_MANY, int ROWS = P::MAX_ROWS, class A>
void rows_of_tiles(const P& product, int64_t rows, int64_t row, int64_t panel, int64_t end_panel, int64_t step,
                   int64_t end_step, A ahead) {
    if (rows == ROWS) return row_of_tiles<P, ROWS, IS_MANY>(product, row, panel, end_panel, step, end_step, ahead);
    if constexpr (ROWS > 1)
        rows_of_tiles<P, IS_MANY, ROWS - 1>(product, rows, row, panel, end_panel, step, end_step, ahead);
}

// All rows of some panels before the next panels, in tiles of nearly equal height.
template <class P, bool IS_MANY>
void blocks(const P& product, int64_t rows, int64_t tiles, int64_t panels, int64_t steps) {
    constexpr int64_t AT_ONCE = P::panels_at_once(P::MAX_ROWS, IS_MANY);
    constexpr int64_t STEPS = (IS_MANY ? MANY_ROWS_INPUTS : FEW_ROWS_INPUTS) / P::STEP_INPUTS;
    for (int64_t panel = 0; panel < panels; panel += AT_ONCE)
        for (int64_t step = 0; step < steps; step += STEPS)
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t row = rows * t / tiles, height = rows * (t + 1) / tiles - row;
                const int64_t end_panel = std::min(panels, panel + AT_ONCE), end_step = std::min(steps, step + STEPS);
                const int64_t ahead = IS_MANY ? AT_ONCE * steps : STEPS;
                if constexpr (IS_MANY && P::SHARES_AHEAD)
                    if (tiles > 1) {
                        rows_of_tiles<P, true>(product, height, row, panel, end_panel, step, end_step,
                                               SharedAhead{ahead, tiles, t + 1});
                        continue;
                    }
                rows_of_tiles<P, IS_MANY>(product, height, row, panel, end_panel, step, end_step,
                                          Ahead{t + 1 < tiles ? 0 : ahead});
            }
}

template <class P>
void multiply(const P& product, int64_t rows, int64_t panels, int64_t steps) {
    const int64_t tiles = (rows + P::MAX_ROWS - 1) / P::MAX_ROWS;
    if (tiles == 1 && rows * steps * P::STEP_INPUTS * P::INPUT_BYTES <= ONE_TILE_BYTES)
        return rows_of_tiles<P, false>(product, rows, 0, 0, panels, 0, steps, Ahead{0});
    if (tiles <= P::FEW_TILES) return blocks<P, false>(product, rows, tiles, panels, steps);
    blocks<P, true>(product, rows, tiles, panels, steps);
}

}  // namespace
}  // namespace pdq
