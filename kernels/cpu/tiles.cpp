// One table per instruction set, and which one is in use. Itself runs on any x86-64.

#include "tiles.h"

#include "isa.h"
#include "quantized_row.h"
#include "tiles_of.h"

namespace pdq {
namespace {

template <Product BF16_PRODUCT, Product INT8_PRODUCT, Product INT4_PRODUCT>
void by_kind(PDQ_PRODUCT_PARAMETERS) {
    Product* product = matrix.kind == INT8 ? INT8_PRODUCT : matrix.kind == INT4 ? INT4_PRODUCT : BF16_PRODUCT;
    product(x, x_stride, rows, matrix, first, panels, c, c_stride);
}

template <Product... PRODUCTS>
constexpr Tiles TABLE{by_kind<PRODUCTS...>, avx2::expand, avx2::quantize_row};

}  // namespace

int64_t quantized_row_bytes(int64_t ins) {
    const int64_t groups = (ins + GROUP - 1) / GROUP;
    return (groups * (GROUP + 12) + 63) / 64 * 64;
}

const Tiles& tiles() {
    switch (isa()) {
        case AMX: return TABLE<amx::bf16_product, avx512_vnni::int8_product, avx512_vnni::int4_product>;
        case AVX512_BF16: return TABLE<avx512_bf16::bf16_product, avx512_vnni::int8_product, avx512_vnni::int4_product>;
        case AVX512_VNNI: return TABLE<avx512::bf16_product, avx512_vnni::int8_product, avx512_vnni::int4_product>;
        case AVX512: return TABLE<avx512::bf16_product, avx512::int8_product, avx512::int4_product>;
        default: return TABLE<avx2::bf16_product, avx2::int8_product, avx2::int4_product>;
    }
}

}  // namespace pdq
