// Weights laid into panels; see tiles.h. Runs on any x86-64: each weight is moved once, at load.

#include <algorithm>
#include <cstring>

#include "tiles.h"

#define PDQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace pdq {
namespace {

void pack_panel_bf16(const uint16_t* weight, int64_t ins, int64_t outs, uint16_t* to) {
    const int64_t inputs = (ins + GROUP - 1) / GROUP * GROUP;
    if (ins < inputs || outs < PANEL) std::memset(to, 0, inputs * PANEL * sizeof *to);
    for (int64_t output = 0; output < outs; output++)
        for (int64_t i = 0; i < ins; i++) to[(i / 2 * PANEL + output) * 2 + i % 2] = weight[output * ins + i];
}

}  // namespace
}  // namespace pdq

// weight: [outs][ins] bfloat16, contiguous.
PDQ_EXPORT void pdq_pack_bf16(const uint16_t* weight, int64_t ins, int64_t outs, uint16_t* panels) {
    const pdq::Matrix matrix{nullptr, pdq::BF16, ins, outs};
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < matrix.num_panels(); panel++)
        pdq::pack_panel_bf16(weight + panel * pdq::PANEL * ins, ins, std::min(pdq::PANEL, outs - panel * pdq::PANEL),
                             panels + panel * matrix.panel_bytes() / 2);
}
