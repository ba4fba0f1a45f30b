#include "thread_team.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace interleaf {

namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins while `done()` is false, and lets other processes run when the wait gets long: the thread that
// is waited for may have lost its core to one of them.
template <typename Done>
void spin_until(Done done) {
  for (int turn = 0; !done(); ++turn) {
    relax();
    if (turn >= 20000) {
      std::this_thread::yield();
      turn = 0;
    }
  }
}

}  // namespace

ThreadTeam::ThreadTeam(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads) {
  for (int thread = 1; thread < num_threads_; ++thread) helpers_.emplace_back([this, thread] { helper_loop(thread); });
}

ThreadTeam::~ThreadTeam() {
  stopping_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadTeam::run(Job job, void* context) {
  std::lock_guard<std::mutex> one_caller(caller_);
  if (num_threads_ == 1) return job(context, 0);
  job_ = job;
  context_ = context;
  num_done_.store(0, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  job(context, 0);
  spin_until([&] { return num_done_.load(std::memory_order_acquire) == num_threads_ - 1; });
}

void ThreadTeam::barrier() {
  if (num_threads_ == 1) return;
  const uint32_t generation = barrier_generation_.load(std::memory_order_acquire);
  if (num_at_barrier_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    num_at_barrier_.store(0, std::memory_order_relaxed);
    barrier_generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return barrier_generation_.load(std::memory_order_acquire) != generation; });
}

void ThreadTeam::helper_loop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
    for (int turn = 1; generation_.load(std::memory_order_acquire) == seen; ++turn) {
      relax();
      if (turn % 64 == 0 && std::chrono::steady_clock::now() > deadline) generation_.wait(seen, std::memory_order_acquire);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    job_(context_, thread);
    num_done_.fetch_add(1, std::memory_order_acq_rel);
  }
}

}  // namespace interleaf
