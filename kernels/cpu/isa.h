// Which instruction sets the kernels are written for, and which of them is in use. Runs on any x86-64.
#pragma once

#include <cstdint>

namespace pdq {

// Each has what those before it have.
enum Isa : int32_t { NONE = 0, AVX2 = 1, AVX512 = 2, AVX512_VNNI = 3, AVX512_BF16 = 4, AMX = 5 };

// The best that there is, or what `pdq_use_isa` asked for.
Isa isa();

}  // namespace pdq
