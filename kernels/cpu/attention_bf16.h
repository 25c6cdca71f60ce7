// Decode attention by AVX512-BF16: see attention.h.
#pragma once

#include "attention.h"

namespace pdq {

// `attend_part` where head_dim is a multiple of 32.
void attend_part_bf16(const CachedHead& head, int64_t first, int64_t end, const BFloat16* queries, int64_t group,
                      float scale, SoftmaxState state);

}  // namespace pdq
