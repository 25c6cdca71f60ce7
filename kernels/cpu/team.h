// The threads that compute, and how work is dealt out among them.
//
// `run(body)` has the caller and its helpers all go through `body`, which is a row of sections: `crew.each(n, task)`
// does task(0) ... task(n - 1), each once, by whoever is free. They are dealt from as many lanes as there may be threads: a
// thread begins with its own and goes on with what is left of the others'. So tasks that follow each other go to one
// thread, and what a task fetches ahead is there for the next (16 rows through all linears of SmolLM2 on two cores of
// Zen 4: 14.4 ms when every task went to whoever came first, 12.8 so). A section is over when its tasks are done, not when
// everybody has come: who was late, or put off its core by another process, finds the section over and goes on to the
// next. So one thread that is not running holds up nobody, which OpenMP's barriers do (two workers' pools on the same
// two cores took 20 times as long). Threads come and go between sections as `threads_now` says.
//
// Outside of tasks a body may only read what no task writes: every thread runs it, at its own time.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

#include "cores.h"

namespace pdq {

constexpr int64_t MAX_SECTIONS = 1 << 14;
constexpr int64_t WORTH_A_WAKE = 1 << 20;

constexpr int64_t MAX_LANES = 8;

struct alignas(64) Section {
    std::atomic<int32_t> next[MAX_LANES]{};  // task to be taken of each lane
    std::atomic<int64_t> done{0};            // tasks
};

class Team;

// One thread's way through a run.
class Crew {
  public:
    Crew(Team* team, int64_t thread) : team_(team), thread_(thread) {}

    template <class Task>
    void each(int64_t tasks, const Task& task);

  private:
    Team* team_;      // null: there is nobody else
    int64_t thread_;  // 0: the caller of `run`
    int64_t section_ = 0;
    bool is_gone_ = false;  // its core went to another worker
};

class Team {
  public:
    // Every process has one. Its threads are started when they are first wanted.
    static Team& of_process();

    // body(Crew&) noexcept. A second caller meanwhile is served by its own thread alone, and so is one whose work takes
    // no longer than waking a thread: about 50 us, or WORTH_A_WAKE multiplications and bytes.
    template <class Body>
    void run(const Body& body, int64_t work = WORTH_A_WAKE) {
        if (work < WORTH_A_WAKE || !begin()) {
            Crew alone(nullptr, 0);
            body(alone);
            return;
        }
        what_ = &body;
        go_ = [](const void* what, Crew& crew) { (*static_cast<const Body*>(what))(crew); };
        open();
        Crew crew(this, 0);
        body(crew);
        close();
    }

  private:
    friend class Crew;

    bool begin();
    void open();
    void close();
    void adjust();  // by the caller of `run`, at every section: how many helpers are wanted
    [[noreturn]] void help(int64_t thread);
    void wake(int64_t helpers);

    Section* sections_ = new Section[MAX_SECTIONS];
    std::atomic<bool> is_taken_{false};
    std::atomic<bool> is_open_{false};
    std::atomic<int64_t> inside_{0};     // helpers
    std::atomic<int64_t> wanted_{1};     // threads, the caller included
    std::atomic<uint32_t> calls_{0};     // helpers sleep on it
    int64_t started_ = 0;                // helpers
    int64_t lanes_ = 1;                  // of every section of this run
    std::atomic<int64_t> last_section_{0};
    const void* what_ = nullptr;
    void (*go_)(const void*, Crew&) = nullptr;
};

template <class Task>
void Crew::each(int64_t tasks, const Task& task) {
    if (!team_) {
        for (int64_t i = 0; i < tasks; i++) task(i);
        return;
    }
    if (is_gone_) return;
    Section& section = team_->sections_[section_++];
    if (thread_ == 0) {
        team_->last_section_.store(section_, std::memory_order_relaxed);
        team_->adjust();
    } else if (thread_ >= team_->wanted_.load(std::memory_order_relaxed)) {
        is_gone_ = true;
        return;
    }
    int64_t mine = 0;
    for (int64_t turn = 0, lanes = team_->lanes_; turn < lanes; turn++) {
        const int64_t lane = (thread_ + turn) % lanes, first = tasks * lane / lanes, end = tasks * (lane + 1) / lanes;
        while (first + section.next[lane].load(std::memory_order_relaxed) < end) {
            const int64_t i = first + section.next[lane].fetch_add(1, std::memory_order_relaxed);
            if (i >= end) break;
            task(i);
            mine++;
            show_computing();
        }
    }
    if (mine) section.done.fetch_add(mine, std::memory_order_release);
    // Short spinning, then the core goes to whoever else wants it: perhaps to the thread that is waited for.
    for (int64_t spins = 0; section.done.load(std::memory_order_acquire) < tasks; spins++) {
        if (spins < 2000 || spins % 64)
            _mm_pause();
        else
            sched_yield();
    }
}

}  // namespace pdq
