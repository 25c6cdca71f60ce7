// Asks the CPU and the operating system which instruction sets there are. Itself runs on any x86-64.

#include "isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>

#define PDQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace pdq {
namespace {

constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
constexpr int AUTOMATIC = -1;

struct Leaf {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool all(unsigned word, std::initializer_list<int> bits) {
    return std::all_of(bits.begin(), bits.end(), [word](int bit) { return word >> bit & 1; });
}

// The registers that the operating system saves for us.
uint64_t saved_state() {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

Isa find() {
    const Leaf basic(1, 0), more(7, 0), last(7, 1);
    const int FMA = 12, OSXSAVE = 27, AVX = 28, F16C = 29, HAS_AVX2 = 5;
    if (!all(basic.ecx, {FMA, OSXSAVE, AVX, F16C}) || !all(more.ebx, {HAS_AVX2})) return NONE;
    const uint64_t saved = saved_state();
    const uint64_t YMM = 0x6, ZMM = 0xe6, TILES = 0x60000;
    if ((saved & YMM) != YMM) return NONE;
    const int F = 16, DQ = 17, BW = 30, VL = 31, VNNI = 11, BF16 = 5;
    if ((saved & ZMM) != ZMM || !all(more.ebx, {F, DQ, BW, VL})) return AVX2;
    if (!all(more.ecx, {VNNI})) return AVX512;
    if (!all(last.eax, {BF16})) return AVX512_VNNI;
    const int AMX_BF16 = 22, AMX_TILE = 24;
    if ((saved & TILES) != TILES || !all(more.edx, {AMX_BF16, AMX_TILE})) return AVX512_BF16;
    // Linux gives the tiles' 8 KB of state only to a process that asks.
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 ? AMX : AVX512_BF16;
}

Isa found() {
    static const Isa known = find();
    return known;
}

std::atomic<int> wanted{AUTOMATIC};

}  // namespace

Isa isa() {
    const int asked = wanted.load(std::memory_order_relaxed);
    return asked == AUTOMATIC ? found() : static_cast<Isa>(asked);
}

}  // namespace pdq

PDQ_EXPORT int pdq_isa(void) { return pdq::isa(); }

// Use this set, or the best again for -1. Returns the one now in use: what there is not is not used.
PDQ_EXPORT int pdq_use_isa(int asked) {
#ifdef PDQ_EMULATED_TILES
    const int best = pdq::AMX;
#else
    const int best = pdq::found();
#endif
    if (asked >= pdq::AUTOMATIC && asked <= best) pdq::wanted.store(asked);
    return pdq::isa();
}
