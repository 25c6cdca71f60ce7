// Panels with AVX2 and FMA.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tiles_of.h"

#pragma GCC target("avx2,fma,f16c")

#include "lanes_avx2.h"

#include "float_product.h"
#include "integer_product.h"

namespace pdq {
namespace {

struct Dots {
    using Bits = Lanes::Bits;

    static Bits int8_start(int32_t) { return Lanes::no_bits(); }
    // |weight| <= 128 and |x| <= 127, so two products fit into 16 bits: 128 * 127 * 2 = 32,512.
    static Bits int8_step(Bits sums, Bits weights, Bits x) {
        return {step(sums.low, weights.low, x.low), step(sums.high, weights.high, x.high)};
    }
    // A group's eight times two products of 15 * 127 fit: 30,480.
    static Bits int4_start() { return Lanes::no_bits(); }
    static Bits int4_step(Bits sums, Bits nibbles, Bits x) {
        return {_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(nibbles.low, x.low)),
                _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(nibbles.high, x.high))};
    }
    static Bits int4_end(Bits sums) { return {fours(sums.low), fours(sums.high)}; }

  private:
    static __m256i fours(__m256i twos) { return _mm256_madd_epi16(twos, _mm256_set1_epi16(1)); }
    static __m256i step(__m256i sums, __m256i weights, __m256i x) {
        const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        return _mm256_add_epi32(sums, fours(twos));
    }
};

}  // namespace

void avx2::bf16_product(PDQ_PRODUCT_PARAMETERS) {
    float_product<Lanes, 6, 1>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

void avx2::int8_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT8, 2>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

void avx2::int4_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT4, 2>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

}  // namespace pdq
