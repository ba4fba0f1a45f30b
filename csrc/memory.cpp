#include "memory.h"

#include <sched.h>

#include <algorithm>

namespace interleaf {

void Memory::touch_ahead(size_t used, size_t ahead) {
  // Often nothing, or the thread would work in every gap of a busy engine.
  if (used + ahead / 2 < to_touch_.load(std::memory_order_relaxed)) return;
  to_touch_.store(std::min(used + ahead, bytes_), std::memory_order_release);
  to_touch_.notify_one();
  if (!toucher_.joinable()) toucher_ = std::thread([this] { touch_loop(); });
}

void Memory::touch_loop() {
  // Without the low priority the thread would take a core from the kernels, so it does without the work instead.
  const sched_param no_priority{};
  if (sched_setscheduler(0, SCHED_IDLE, &no_priority) != 0) return;
  constexpr size_t kPage = 4096;
  uint8_t* const start = static_cast<uint8_t*>(data_);
  for (size_t touched = 0;;) {
    const size_t wanted = to_touch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (touched >= wanted) {
      to_touch_.wait(wanted, std::memory_order_acquire);
      continue;
    }
    // Others may be writing here: an atomic "or" of nothing touches the page and changes no value.
    __atomic_fetch_or(start + touched, uint8_t{0}, __ATOMIC_RELAXED);
    touched += kPage;
  }
}

void Memory::stop_touching() {
  if (!toucher_.joinable()) return;
  stopping_ = true;
  to_touch_.store(SIZE_MAX, std::memory_order_release);
  to_touch_.notify_one();
  toucher_.join();
}

}  // namespace interleaf
