// INT8 and INT4 panels with AVX512-VNNI: one instruction multiplies 16 outputs by four inputs.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "tiles_of.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "lanes_avx512.h"

#include "integer_product.h"

namespace pdq {
namespace {

struct Dots {
    using Bits = Lanes::Bits;

    // It multiplies bytes without a sign by those with one: weights go in 128 too large, and the start puts that right.
    static Bits int8_start(int32_t offset) { return Lanes::everywhere(offset); }
    static Bits int8_step(Bits sums, Bits weights, Bits x) {
        return _mm512_dpbusd_epi32(sums, _mm512_xor_si512(weights, _mm512_set1_epi8(-128)), x);
    }
    static Bits int4_start() { return Lanes::no_bits(); }
    static Bits int4_step(Bits sums, Bits nibbles, Bits x) { return _mm512_dpbusd_epi32(sums, nibbles, x); }
    static Bits int4_end(Bits sums) { return sums; }
};

}  // namespace

void avx512_vnni::int8_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT8, 6>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

void avx512_vnni::int4_product(PDQ_PRODUCT_PARAMETERS) {
    integer_product<Lanes, Dots, INT4, 6>(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

}  // namespace pdq
