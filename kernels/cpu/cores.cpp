// The ledger of cores: a page of shared memory with a slot per worker, in which it stamps the time while it computes,
// and says how many prompts it is about to finish.
//
// A worker computes if its stamp is fresh. So nobody has to give anything back: who waits for work, who was killed and
// who was stopped have stale stamps, and the others take their cores at the next section of their work. kernels/cores.py
// makes the page and chooses the slot.

#include "cores.h"

#include <time.h>

#include <algorithm>
#include <atomic>

namespace pdq {
namespace {

// Longer than a decode worker's pause between two steps (about 1 ms), shorter than anybody would miss a core.
constexpr int64_t FRESH_NS = 3'000'000;

struct alignas(64) Slot {
    std::atomic<int64_t> computed_ns;
    std::atomic<int64_t> prompts;
};

Slot* ledger = nullptr;  // null: nobody to share with
int64_t num_slots = 0, own_slot = 0;
std::atomic<int64_t> num_threads{1};

int64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// of(slot) for every other worker that computes now
template <class Of>
void each_other(const Of& of) {
    const int64_t now = now_ns();
    for (int64_t slot = 0; slot < num_slots; slot++)
        if (slot != own_slot && now - ledger[slot].computed_ns.load(std::memory_order_relaxed) < FRESH_NS) of(slot);
}

}  // namespace

int64_t threads_now() {
    const int64_t threads = num_threads.load(std::memory_order_relaxed);
    if (!ledger || threads == 1) return threads;
    int64_t computing = 1, before_us = 0;
    each_other([&](int64_t slot) {
        computing++;
        before_us += slot < own_slot;
    });
    // What does not divide goes to those of the lowest slots.
    return std::max<int64_t>(1, threads / computing + (before_us < threads % computing));
}

int64_t threads_at_most() { return num_threads.load(std::memory_order_relaxed); }

void show_computing() {
    if (ledger) ledger[own_slot].computed_ns.store(now_ns(), std::memory_order_relaxed);
}

}  // namespace pdq

#define PDQ_EXPORT extern "C" __attribute__((visibility("default")))

// Threads that a run may use, its caller's included; at least 1.
PDQ_EXPORT void pdq_set_threads(int64_t threads) { pdq::num_threads.store(std::max<int64_t>(1, threads)); }

PDQ_EXPORT int64_t pdq_num_threads() { return pdq::num_threads.load(); }

PDQ_EXPORT int64_t pdq_threads_now() { return pdq::threads_now(); }

// Until we compute again the cores are others', at once and not when the stamp is stale.
PDQ_EXPORT void pdq_leave_cores() {
    if (pdq::ledger) pdq::ledger[pdq::own_slot].computed_ns.store(0, std::memory_order_relaxed);
}

// Prompts whose first tokens our next steps give: for others to see while we compute.
PDQ_EXPORT void pdq_show_prompts(int64_t prompts) {
    if (pdq::ledger) pdq::ledger[pdq::own_slot].prompts.store(prompts, std::memory_order_relaxed);
}

// Such prompts of all others that compute now.
PDQ_EXPORT int64_t pdq_prompts_of_others() {
    int64_t prompts = 0;
    if (pdq::ledger)
        pdq::each_other([&](int64_t slot) { prompts += pdq::ledger[slot].prompts.load(std::memory_order_relaxed); });
    return prompts;
}

// page: `slots` slots of 64 bytes, zeroed once, mapped by every worker that computes on the same cores; null: none.
PDQ_EXPORT void pdq_share_cores(void* page, int64_t slots, int64_t slot) {
    pdq::num_slots = slots;
    pdq::own_slot = slot;
    pdq::ledger = static_cast<pdq::Slot*>(page);
}
