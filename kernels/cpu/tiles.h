// Products of a few rows with panels of 16 outputs: the one thing that is written anew for every instruction set.
//
// A matrix lies in panels of 16 outputs, whose inputs are padded with zeros to whole groups of 32, so that one layout
// serves every instruction set and may be kept in a file that all workers of a host map. By kind, a panel is
//   BF16  [inputs / 2][16 outputs][2]: what AVX512-BF16 and AMX multiply by as it stands
//   INT8  [groups] of [8][16 outputs][4 inputs] int8, then [16] float16 scales: 544 bytes
//   INT4  [groups] of [4][16 outputs][4 inputs], the low nibble input 8 j + i and the high one 8 j + 4 + i of the group,
//         then [16] float16 scales and [16] float16 minima: 320 bytes. weight = scale * nibble + minimum
// and so is read as one stream.
//
// Every output is one chain over its inputs in order, whatever rows and panels it is computed beside. So a row's result
// has the same bits in any batch and at any number of threads on one instruction set, and that is a promise.
#pragma once

#include <cstdint>

namespace pdq {

constexpr int64_t PANEL = 16;  // outputs
constexpr int64_t GROUP = 32;  // inputs

constexpr int64_t INT8_GROUP_BYTES = GROUP * PANEL + PANEL * 2, INT4_GROUP_BYTES = GROUP * PANEL / 2 + PANEL * 4;

enum Kind : int64_t { BF16 = 0, INT8 = 1, INT4 = 2 };

// A weight [outs][ins] in panels. Python fills it in: kernels/panels.py has the same fields.
struct Matrix {
    const uint8_t* panels;
    int64_t kind, ins, outs;

    int64_t groups() const { return (ins + GROUP - 1) / GROUP; }
    int64_t num_panels() const { return (outs + PANEL - 1) / PANEL; }
    int64_t group_bytes() const { return kind == INT8 ? INT8_GROUP_BYTES : kind == INT4 ? INT4_GROUP_BYTES : 1024; }
    int64_t panel_bytes() const { return groups() * group_bytes(); }
};

// c[r * c_stride + 16 * p + o] = row r . output o of panel first + p, in float, without bias. Outputs beyond `outs` are
// padding: zeros, where x is finite. x_stride in bytes. x is what a matrix of its kind is multiplied by. For BF16 the bfloat16 rows themselves, each `groups() * GROUP` long and
// zero beyond `ins`. For INT8 and INT4 rows as `quantize_row` leaves them, each `quantized_row_bytes(ins)` long.
using Product = void(const void* x, int64_t x_stride, int64_t rows, const Matrix& matrix, int64_t first, int64_t panels,
                     float* c, int64_t c_stride);

struct Tiles {
    Product* product;
    // Panels as BF16 ones, for many rows at once: out holds `panels` of [groups * 16][16][2].
    void (*expand)(const Matrix& matrix, int64_t first, int64_t panels, uint16_t* out);
    // A bfloat16 row to int8: per group a float scale = largest / 127, values rounded to nearest even.
    void (*quantize_row)(const uint16_t* x, int64_t ins, uint8_t* out);
};

// Bytes of a row that `quantize_row` makes for so many inputs; a multiple of 64.
int64_t quantized_row_bytes(int64_t ins);

// Of the instruction set in use.
const Tiles& tiles();

}  // namespace pdq
