#include "memory.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <ctime>

namespace interleaf {

namespace {

constexpr size_t kPage = 4096, kPagesAtOnce = 512;
constexpr std::chrono::milliseconds kPause{20};

std::chrono::nanoseconds read_clock(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// Tells whether the process has computed since it was last asked, besides the thread that asks.
class OthersWatch {
 public:
  bool were_busy() {
    const auto now = read_clock(CLOCK_MONOTONIC);
    const auto others = read_clock(CLOCK_PROCESS_CPUTIME_ID) - read_clock(CLOCK_THREAD_CPUTIME_ID);
    const bool busy = (others - others_) * 10 > now - asked_;
    asked_ = now;
    others_ = others;
    return busy;
  }

 private:
  // As if it had: the first answer is that it was busy.
  std::chrono::nanoseconds asked_ = read_clock(CLOCK_MONOTONIC), others_{-kPause};
};

}  // namespace

void Memory::touch_ahead(size_t used, size_t ahead) {
  // Often nothing: the thread wakes up seldom.
  if (used + ahead / 2 < to_touch_.load(std::memory_order_relaxed)) return;
  to_touch_.store(std::min(used + ahead, bytes_), std::memory_order_release);
  to_touch_.notify_one();
  if (!toucher_.joinable()) toucher_ = std::thread([this] { touch_loop(); });
}

void Memory::touch_loop() {
  // Without the low priority the thread would take a core from the kernels, so it does without the work instead.
  const sched_param no_priority{};
  if (sched_setscheduler(0, SCHED_IDLE, &no_priority) != 0) return;
  uint8_t* const start = static_cast<uint8_t*>(data_);
  OthersWatch others;
  for (size_t touched = 0;;) {
    const size_t wanted = to_touch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (touched >= wanted) {
      to_touch_.wait(wanted, std::memory_order_acquire);
      continue;
    }
    if (others.were_busy()) {
      std::this_thread::sleep_for(kPause);
      continue;
    }
    for (size_t page = 0; page < kPagesAtOnce && touched < wanted; ++page, touched += kPage) {
      // Others may be writing here: an atomic "or" of nothing touches the page and changes no value.
      __atomic_fetch_or(start + touched, uint8_t{0}, __ATOMIC_RELAXED);
    }
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
