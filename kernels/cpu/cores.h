// Which cores are ours at the moment, where several workers of a host compute on the same ones.
#pragma once

#include <cstdint>

namespace pdq {

// How many threads should compute now, ours included: all that were given, less those of workers that compute too.
int64_t threads_now();

// How many there may ever be.
int64_t threads_at_most();

// To be called by whoever computes, every millisecond or so: that is how the others know.
void show_computing();

}  // namespace pdq
