// The team's threads: when they sleep, when they come, when they leave.

#include "team.h"

#include <algorithm>
#include <thread>

namespace pdq {
namespace {

// How long a helper looks out for the next run before it sleeps: steps follow each other within a millisecond, and to
// be woken takes 50 us. In turns of the loop, about 40 ns each.
constexpr int64_t LOOKOUT = 2000;

}  // namespace

Team& Team::of_process() {
    // Never destroyed: its threads may be in it when the process ends.
    static Team* const team = new Team;
    return *team;
}

bool Team::begin() {
    bool is_taken = false;
    return is_taken_.compare_exchange_strong(is_taken, true, std::memory_order_acquire);
}

void Team::open() {
    const int64_t used = last_section_.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < used; i++) {
        for (auto& next : sections_[i].next) next.store(0, std::memory_order_relaxed);
        sections_[i].done.store(0, std::memory_order_relaxed);
    }
    last_section_.store(0, std::memory_order_relaxed);
    lanes_ = std::min(threads_at_most(), MAX_LANES);
    show_computing();
    wanted_.store(1, std::memory_order_relaxed);
    is_open_.store(true);
}

void Team::close() {
    is_open_.store(false);
    // Those inside have nothing left to do but to see that.
    for (int64_t spins = 0; inside_.load() > 0; spins++) {
        if (spins < 2000 || spins % 64)
            _mm_pause();
        else
            sched_yield();
    }
    show_computing();
    is_taken_.store(false, std::memory_order_release);
}

void Team::adjust() {
    const int64_t wanted = threads_now(), before = wanted_.load(std::memory_order_relaxed);
    if (wanted == before) return;
    wanted_.store(wanted, std::memory_order_relaxed);
    if (wanted > before) wake(wanted - 1);
}

void Team::wake(int64_t helpers) {
    for (; started_ < helpers; started_++) std::thread(&Team::help, this, started_ + 1).detach();
    calls_.fetch_add(1);
    calls_.notify_all();
}

void Team::help(int64_t thread) {
    uint32_t seen = calls_.load() - 1;  // there was a call, or it would not have been started
    for (;;) {
        for (int64_t turns = 0; calls_.load(std::memory_order_relaxed) == seen && turns < LOOKOUT; turns++) _mm_pause();
        calls_.wait(seen);
        seen = calls_.load();
        if (thread >= wanted_.load(std::memory_order_relaxed)) continue;
        inside_.fetch_add(1);
        if (is_open_.load()) {
            Crew crew(this, thread);
            go_(what_, crew);
        }
        inside_.fetch_sub(1);
    }
}

}  // namespace pdq
