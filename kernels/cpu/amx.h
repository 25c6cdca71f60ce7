// The tile instructions that products need, and nothing else of AMX: configure, clear, load, multiply, store. For tests
// without AMX the same by loops (PDQ_EMULATED_TILES), so that what uses them is proved as it stands.
//
// Tile numbers are constants of the instructions, 0 to 7; a ninth is a fault, so they are template parameters here.
#pragma once

#include <cstdint>
#include <cstring>

namespace pdq {
namespace {

constexpr int64_t TILE_ROWS = 16;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // 16 columns of 4 bytes, or an unused tile: one of rows and row_bytes alone that is 0 is a fault.
    void set(int tile, int64_t num_rows) {
        rows[tile] = num_rows;
        row_bytes[tile] = num_rows ? 64 : 0;
    }
};

#ifdef PDQ_EMULATED_TILES

struct Tiles8 {
    TileConfig config;
    float values[8][16][16];
    bool is_configured = false;
};
thread_local Tiles8 emulated;

inline void configure(const TileConfig& config) {
    emulated = {config, {}, true};
}
inline void release() { emulated.is_configured = false; }

template <int TILE>
float (&tile())[16][16] {
    static_assert(0 <= TILE && TILE < 8);
    const int rows = emulated.config.rows[TILE];
    if (!emulated.is_configured || rows == 0 || rows > 16 || emulated.config.row_bytes[TILE] != 64) __builtin_trap();
    return emulated.values[TILE];
}
template <int TILE>
void clear() {
    std::memset(tile<TILE>(), 0, 1024);
}
template <int TILE>
void load(const void* from, int64_t stride_bytes) {
    auto& values = tile<TILE>();
    std::memset(values, 0, 1024);  // rows beyond the configured ones read as zero
    for (int row = 0; row < emulated.config.rows[TILE]; row++)
        std::memcpy(values[row], static_cast<const char*>(from) + row * stride_bytes, 64);
}
template <int TILE>
void store(float* to, int64_t stride_bytes) {
    const auto& values = tile<TILE>();
    for (int row = 0; row < emulated.config.rows[TILE]; row++)
        std::memcpy(reinterpret_cast<char*>(to) + row * stride_bytes, values[row], 64);
}
// The architecture's own order: even and odd inputs in a chain each, then their sum onto the tile.
template <int SUMS, int X, int WEIGHTS>
void multiply_tiles() {
    auto& sums = tile<SUMS>();
    const auto &x = tile<X>(), &weights = tile<WEIGHTS>();
    if (emulated.config.rows[SUMS] != emulated.config.rows[X] || emulated.config.rows[WEIGHTS] != 16) __builtin_trap();
    const auto half = [](float pair, int place) {
        uint32_t bits;
        std::memcpy(&bits, &pair, 4);
        bits = place ? bits & 0xffff0000 : bits << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    };
    for (int row = 0; row < emulated.config.rows[SUMS]; row++)
        for (int column = 0; column < 16; column++) {
            float chains[2] = {0, 0};
            for (int k = 0; k < 16; k++)
                for (int place = 0; place < 2; place++)
                    chains[place] = __builtin_fmaf(half(x[row][k], place), half(weights[k][column], place), chains[place]);
            sums[row][column] += chains[0] + chains[1];
        }
}
#else

inline void configure(const TileConfig& config) {
    asm volatile("" ::: "memory");  // gcc 12 thinks that the instruction reads no memory, and drops the stores before it
    _tile_loadconfig(&config);
}
inline void release() { _tile_release(); }

// gcc's intrinsics are macros that want literals; template parameters are as good in assembly.
template <int TILE>
void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
void load(const void* from, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(TILE) : "memory");
}
template <int TILE>
void store(float* to, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(TILE) : "memory");
}
template <int SUMS, int X, int WEIGHTS>
void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(WEIGHTS), "i"(X), "i"(SUMS));
}

#endif

}  // namespace
}  // namespace pdq
