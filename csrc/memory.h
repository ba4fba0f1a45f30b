// Page-aligned zeroed memory that asks for huge pages, and gives everything back when it goes.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

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
  ~Memory() { munmap(mapped_, mapped_bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_, mapped_bytes_;
  void* mapped_;
  void* data_;
};

}  // namespace interleaf
