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

constexpr std::chrono::microseconds kSpinMicroseconds{60};

}  // namespace

uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinMicroseconds;
  for (int turn = 1;; ++turn) {
    const uint32_t value = word.load(std::memory_order_acquire);
    if (value != old) return value;
    relax();
    if (turn % 64 == 0 && std::chrono::steady_clock::now() > deadline) word.wait(old, std::memory_order_acquire);
  }
}

ThreadTeam::ThreadTeam(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads), num_present_(num_threads_), next_present_(num_threads_) {
  for (int thread = 1; thread < num_threads_; ++thread) helpers_.emplace_back([this, thread] { helper_loop(thread); });
}

ThreadTeam::~ThreadTeam() {
  stopping_ = true;
  for (std::atomic<uint32_t>* generation : {&generation_, &last_generation_}) {
    generation->fetch_add(1);
    generation->notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadTeam::run(Job job, void* context, bool without_last) {
  std::lock_guard<std::mutex> one_caller(caller_);
  if (num_threads_ == 1) return job(context, 0);
  job_ = job;
  context_ = context;
  num_done_.store(0, std::memory_order_relaxed);
  num_returns_ = static_cast<uint32_t>(num_threads_ - 2);
  want_last(!without_last);
  num_present_.store(next_present_, std::memory_order_relaxed);
  if (!without_last) call_last();
  if (num_threads_ > 2) {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  job(context, 0);
  for (uint32_t done = num_done_.load(std::memory_order_acquire); done != num_returns_;)
    done = wait_for_change(num_done_, done);
}

void ThreadTeam::call_last() {
  ++num_calls_;
  ++num_returns_;
  last_generation_.fetch_add(1, std::memory_order_release);
  last_generation_.notify_all();
}

void ThreadTeam::barrier() {
  if (num_threads_ == 1) return;
  const uint32_t generation = barrier_generation_.load(std::memory_order_acquire);
  const int num_present = num_present_.load(std::memory_order_relaxed);
  if (num_at_barrier_.fetch_add(1, std::memory_order_acq_rel) == num_present - 1) {
    num_at_barrier_.store(0, std::memory_order_relaxed);
    num_present_.store(next_present_, std::memory_order_relaxed);
    barrier_generation_.store(generation + 1, std::memory_order_release);
    barrier_generation_.notify_all();
    return;
  }
  wait_for_change(barrier_generation_, generation);
}

void ThreadTeam::helper_loop(int thread) {
  const std::atomic<uint32_t>& generation = thread == last() ? last_generation_ : generation_;
  uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation, seen);
    if (stopping_) return;
    job_(context_, thread);
    if (thread == last()) num_left_.fetch_add(1, std::memory_order_release);
    num_done_.fetch_add(1, std::memory_order_acq_rel);
    num_done_.notify_one();
  }
}

}  // namespace interleaf
