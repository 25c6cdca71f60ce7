// One table per instruction set, and which one is in use. Itself runs on any x86-64.

#include "tiles.h"

#include "isa.h"
#include "tiles_of.h"

namespace pdq {

const Tiles& tiles() {
    static const Tiles table{avx512_bf16::bf16_product, nullptr, nullptr};
    return table;
}

}  // namespace pdq
