// Which instruction sets the kernels are written for, and which of them is in use. Runs on any x86-64.
#pragma once

#include <cstdint>

namespace pdq {

// Each has what those before it have.
enum Isa : int32_t { NONE = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3, AMX = 4 };

// What this CPU and its operating system have. VNNI is a part of AVX512_BF16, and of some CPUs before it.
struct Found {
    Isa isa;
    bool has_vnni;
};
Found found();

// The best that there is, or what `pdq_use_isa` asked for.
Isa isa();

}  // namespace pdq
