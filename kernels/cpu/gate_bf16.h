// The gate of an MLP by AVX512-BF16, as its products leave a tile.
#pragma once

#include "simd.h"

namespace pdq {

// out = silu(gate) * up, of `size` sums, a multiple of 16, that are rounded to bfloat16 like any linear's outputs first.
void silu_mul_bf16(const float* gate, const float* up, BFloat16* out, int64_t size);

}  // namespace pdq
