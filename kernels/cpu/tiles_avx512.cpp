// Panels with AVX512 alone: products of bytes by way of 16-bit sums, the same integers as with VNNI.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tiles_of.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

#include "lanes_avx512.h"

#include "float_product.h"
#include "integer_product.h"

namespace pdq {
namespace {

struct Dots {
    using Bits = Lanes::Bits;

    static Bits int8_start(int32_t) { return Lanes::no_bits(); }
    // |weight| <= 128 and |x| <= 127, so two products fit into 16 bits: 128 * 127 * 2 = 32,512.
    static Bits int8_step(Bits sums, Bits weights, Bits x) {
        const Bits turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(weights), Lanes::no_bits(), x);
        return _mm512_add_epi32(sums, fours(_mm512_maddubs_epi16(_mm512_abs_epi8(weights), turned)));
    }
    // A group's eight times two products of 15 * 127 fit: 30,480.
    static Bits int4_start() { return Lanes::no_bits(); }
    static Bits int4_step(Bits sums, Bits nibbles, Bits x) {
        return _mm512_add_epi16(sums, _mm512_maddubs_epi16(nibbles, x));
    }
    static Bits int4_end(Bits sums) { return fours(sums); }

  private:
    static Bits fours(Bits twos) { return _mm512_madd_epi16(twos, _mm512_set1_epi16(1)); }
};

}  // namespace

void avx512::bf16_product(PDQ_PRODUCT_PARAMETERS) {
    float_product<Lanes, 8, 3>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

void avx512::int8_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT8, 4>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

void avx512::int4_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT4, 4>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

}  // namespace pdq
