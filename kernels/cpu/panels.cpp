// Weights laid into panels; see tiles.h. Runs on any x86-64: each weight is moved once, at load.

#include "tiles.h"

#include <algorithm>
#include <cstring>

#include "team.h"

#define PDQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace pdq {
namespace {

// pack(first output, outputs, panel) for every panel, which is zero before.
template <class Pack>
void each_panel(int64_t kind, int64_t ins, int64_t outs, uint8_t* panels, Pack pack) {
    const Matrix matrix{nullptr, kind, ins, outs};
    Team::of_process().run([&](Crew& crew) {
        crew.each(matrix.num_panels(), [&](int64_t panel) {
            uint8_t* to = panels + panel * matrix.panel_bytes();
            std::memset(to, 0, matrix.panel_bytes());
            pack(panel * PANEL, std::min(PANEL, outs - panel * PANEL), to);
        });
    });
}

}  // namespace
}  // namespace pdq

using pdq::GROUP;
using pdq::PANEL;

// weight: [outs][ins] bfloat16.
PDQ_EXPORT void pdq_pack_bf16(const uint16_t* weight, int64_t ins, int64_t outs, uint8_t* panels) {
    pdq::each_panel(pdq::BF16, ins, outs, panels, [=](int64_t first, int64_t outputs, uint8_t* panel) {
        auto* to = reinterpret_cast<uint16_t*>(panel);
        for (int64_t output = 0; output < outputs; output++)
            for (int64_t i = 0; i < ins; i++)
                to[(i / 2 * PANEL + output) * 2 + i % 2] = weight[(first + output) * ins + i];
    });
}

// codes: [outs][ins] int8; scales: [outs][groups] float16.
PDQ_EXPORT void pdq_pack_int8(const uint8_t* codes, const uint16_t* scales, int64_t ins, int64_t outs, uint8_t* panels) {
    const int64_t groups = (ins + GROUP - 1) / GROUP;
    pdq::each_panel(pdq::INT8, ins, outs, panels, [=](int64_t first, int64_t outputs, uint8_t* panel) {
        for (int64_t output = 0; output < outputs; output++)
            for (int64_t group = 0; group < groups; group++) {
                uint8_t* to = panel + group * pdq::INT8_GROUP_BYTES;
                const uint8_t* from = codes + (first + output) * ins + group * GROUP;
                for (int64_t i = 0; i < std::min(GROUP, ins - group * GROUP); i++)
                    to[(i / 4 * PANEL + output) * 4 + i % 4] = from[i];
                std::memcpy(to + GROUP * PANEL + output * 2, scales + (first + output) * groups + group, 2);
            }
    });
}

// codes: [outs][ins], 0..15; scales and minima: [outs][groups] float16.
PDQ_EXPORT void pdq_pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* minima, int64_t ins,
                              int64_t outs, uint8_t* panels) {
    const int64_t groups = (ins + GROUP - 1) / GROUP;
    pdq::each_panel(pdq::INT4, ins, outs, panels, [=](int64_t first, int64_t outputs, uint8_t* panel) {
        for (int64_t output = 0; output < outputs; output++)
            for (int64_t group = 0; group < groups; group++) {
                uint8_t* to = panel + group * pdq::INT4_GROUP_BYTES;
                const uint8_t* from = codes + (first + output) * ins + group * GROUP;
                for (int64_t i = 0; i < std::min(GROUP, ins - group * GROUP); i++)
                    to[(i / 8 * PANEL + output) * 4 + i % 4] |= from[i] << (i % 8 / 4 * 4);
                uint8_t* halves = to + GROUP * PANEL / 2 + output * 2;
                std::memcpy(halves, scales + (first + output) * groups + group, 2);
                std::memcpy(halves + PANEL * 2, minima + (first + output) * groups + group, 2);
            }
    });
}
