// Memory that is kept from call to call and cut anew in each.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace pdq {

class Scratch {
  public:
    ~Scratch() { std::free(memory_); }

    // Before the first `take` of a call: room for all of them, each rounded up by `bytes_of`.
    void reserve(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
            size_ = bytes;
        }
        used_ = 0;
    }

    template <class T>
    T* take(int64_t count) {
        T* const taken = reinterpret_cast<T*>(memory_ + used_);
        used_ += bytes_of<T>(count);
        return taken;
    }

    template <class T>
    static int64_t bytes_of(int64_t count) {
        return (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    }

  private:
    uint8_t* memory_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace pdq
