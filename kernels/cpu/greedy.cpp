// The largest logit of each row and the log of its probability. Twin: kernels/greedy.py.

#include "simd.h"
#include "scratch.h"
#include "team.h"
#include "largest.h"

namespace pdq {
namespace {

float greedy_row(const float* logits, int64_t size, int64_t* place) {
    thread_local Scratch of_thread;
    const int64_t count = (size + LARGEST_SPAN - 1) / LARGEST_SPAN;
    of_thread.reserve(Scratch::bytes_of<Largest>(count));
    Largest* const spans = of_thread.take<Largest>(count);
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i * LARGEST_SPAN;
        spans[i] = largest_of_span(logits + first, first, std::min(LARGEST_SPAN, size - first));
    }
    return largest_of_row(spans, count, place);
}

}  // namespace
}  // namespace pdq

// logits: [rows][stride], of which `size` count. -> the place and the logprob of each row's largest
PDQ_EXPORT void pdq_greedy(const float* logits, int64_t stride, int64_t rows, int64_t size, int64_t* places,
                           float* logprobs) {
    pdq::Team::of_process().run([=](pdq::Crew& crew) {
        crew.each(rows, [=](int64_t row) {
            logprobs[row] = pdq::greedy_row(logits + row * stride, size, places + row);
        });
    });
}
