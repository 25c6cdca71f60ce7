// What each instruction set's file has for the table in tiles.cpp.
#pragma once

#include "tiles.h"

#define PDQ_PRODUCT_PARAMETERS                                                                                  \
    const void *x, int64_t x_stride, int64_t rows, const Matrix &matrix, int64_t first, int64_t panels, float *c, \
        int64_t c_stride

namespace pdq {

namespace avx2 {
Product bf16_product, int8_product, int4_product;
// The same for every instruction set, as both are done once for many products.
void expand(const Matrix& matrix, int64_t first, int64_t panels, uint16_t* out);
void quantize_row(const uint16_t* x, int64_t ins, uint8_t* out);
}  // namespace avx2

namespace avx512 {
Product bf16_product, int8_product, int4_product;
}

namespace avx512_vnni {
Product int8_product, int4_product;
}

namespace avx512_bf16 {
Product bf16_product;
}

namespace amx {
Product bf16_product;
}

}  // namespace pdq
