// What each instruction set's file has for the table in tiles.cpp.
#pragma once

#include "tiles.h"

namespace pdq {

namespace avx512_bf16 {
Product bf16_product;
}

}  // namespace pdq
