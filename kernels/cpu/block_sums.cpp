// Two sums over each block, taken while it is copied: what is added is what was stored. Twin and formula:
// kernels/block_sums.py. One thread: the cores compute the decode step meanwhile.

#include "simd.h"

namespace pdq {
namespace {

// 32 bytes are a row of eight words. `low` and `high` hold the sums of its even and odd words, the `running` ones the
// sums of those after each row, so that a row counts as often as rows are left.
struct Sums {
    __m256i low, high, running_low, running_high;

    inline void add(__m256i row) {
        low = _mm256_add_epi64(low, _mm256_and_si256(row, _mm256_set1_epi64x(0xffffffff)));
        high = _mm256_add_epi64(high, _mm256_srli_epi64(row, 32));
        running_low = _mm256_add_epi64(running_low, low);
        running_high = _mm256_add_epi64(running_high, high);
    }

    inline void store(uint64_t* out) const {
        alignas(32) uint64_t sums[8], running[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 4), high);
        _mm256_store_si256(reinterpret_cast<__m256i*>(running), running_low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(running + 4), running_high);
        out[0] = out[1] = 0;
        for (uint64_t lane = 0; lane < 8; lane++) {
            const uint64_t word = lane < 4 ? 2 * lane : 2 * (lane - 4) + 1;  // its place in the row
            out[0] += sums[lane];
            out[1] += 8 * running[lane] - word * sums[lane];
        }
    }
};

template <bool COPIES>
void sum_block(const uint8_t* from, uint8_t* to, int64_t num_bytes, uint64_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    Sums sums = {zero, zero, zero, zero};  // a constructor would not be compiled for AVX2
    int64_t place = 0;
    for (; place + 32 <= num_bytes; place += 32) {
        const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + place));
        if (COPIES) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + place), row);
        sums.add(row);
    }
    if (const int64_t rest = num_bytes - place) {
        alignas(32) uint8_t row[32] = {};
        std::memcpy(row, from + place, rest);
        if (COPIES) std::memcpy(to + place, row, rest);
        sums.add(_mm256_load_si256(reinterpret_cast<const __m256i*>(row)));
    }
    sums.store(out);
}

}  // namespace
}  // namespace pdq

// Block i: `num_bytes` from source + source_places[i], to target + target_places[i] unless target is null.
// sums: [blocks][2]
PDQ_EXPORT void pdq_block_sums(const uint8_t* source, const int64_t* source_places, uint8_t* target,
                               const int64_t* target_places, int64_t blocks, int64_t num_bytes, uint64_t* sums) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint8_t* from = source + source_places[block];
        if (target)
            pdq::sum_block<true>(from, target + target_places[block], num_bytes, sums + 2 * block);
        else
            pdq::sum_block<false>(from, nullptr, num_bytes, sums + 2 * block);
    }
}
