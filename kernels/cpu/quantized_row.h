// How a quantized row of x lies in memory: values, then what each group's product needs of it.
#pragma once

#include <type_traits>

#include "tiles.h"

namespace pdq {

// Of G groups: int8 values[32 G], float scales[G], float sums[G] (scale * sum of the values: what a minimum is
// multiplied by), int32 offsets[G] (-128 * sum of the values: what weights that are 128 too large are put right by).
template <class Byte>
struct QuantizedRow {
    Byte* values;
    int64_t groups;

    template <class T>
    using Like = std::conditional_t<std::is_const_v<Byte>, const T, T>;

    auto* scales() const { return reinterpret_cast<Like<float>*>(values + groups * GROUP); }
    auto* sums() const { return scales() + groups; }
    auto* offsets() const { return reinterpret_cast<Like<int32_t>*>(sums() + groups); }
};

}  // namespace pdq
