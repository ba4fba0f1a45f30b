// Page-aligned zeroed memory that asks for huge pages, and gives everything back when it goes.
//
// The system hands out a page when it is first touched, which takes long: about 0.1 ms a megabyte, and 2 ms on a virtual
// machine whose host has to find the page first. So a region may be touched ahead of its use, by a thread that works while
// the rest of the process is idle: a page that is being found holds up whoever gets its core, whatever the priorities.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <thread>

namespace interleaf {

class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes ? bytes : 1) {
    constexpr size_t kHugePage = size_t{2} << 20;
    // Over-allocated by one huge page so that the start can be aligned to one.
    mapped_bytes_ = bytes_ >= kHugePage ? bytes_ + kHugePage : bytes_;
    void* mapped = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mapped_ = mapped;
    uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
    if (bytes_ >= kHugePage) {
      start = (start + kHugePage - 1) & ~(kHugePage - 1);
      madvise(reinterpret_cast<void*>(start), bytes_, MADV_HUGEPAGE);
    }
    data_ = reinterpret_cast<void*>(start);
  }
  ~Memory() {
    stop_touching();
    munmap(mapped_, mapped_bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // Of the first `used` bytes some are in use: has up to `ahead` more touched in the background. Returns at once. One
  // caller at a time.
  void touch_ahead(size_t used, size_t ahead);

 private:
  void touch_loop();
  void stop_touching();

  size_t bytes_, mapped_bytes_;
  void* mapped_;
  void* data_;
  std::atomic<size_t> to_touch_{0};
  std::atomic<bool> stopping_{false};
  std::thread toucher_;
};

}  // namespace interleaf
