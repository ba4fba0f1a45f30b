// A fixed team of threads that run one job together, with the caller as thread 0.
//
// Dispatch, join and barrier cost well under a microsecond while threads spin for one another. Whoever has waited for
// `kSpinMicroseconds` sleeps on a futex (through std::atomic::wait): an idle team costs nothing, and when another process
// has taken the core of the thread that is waited for, the sleeper's core is free for it.
//
// The last thread may stay away from a job, or from a part of it, so that another process has its core: whoever is
// put off a core in the middle of its work keeps all others waiting, which costs the team far more than that core.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace interleaf {

// Returns the first value of `word` other than `old`: spins for a while, then sleeps until somebody notifies.
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t old);

class ThreadTeam {
 public:
  using Job = void (*)(void* context, int thread);

  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return num_threads_; }

  // Runs `job(context, thread)` on every thread and returns when all have returned. One caller at a time
  // has the team; others wait. With `without_last` the last thread (of two or more) does not take part until it is
  // called.
  void run(Job job, void* context, bool without_last = false);

  template <typename Function>
  void run(Function&& function, bool without_last = false) {
    run([](void* context, int thread) { (*static_cast<std::remove_reference_t<Function>*>(context))(thread); }, &function,
        without_last);
  }

  // Waits until every thread that takes part in the job has come here. Only inside a job.
  void barrier();

  // Inside a job, on thread 0, ahead of a barrier: whether the last thread takes part behind it. One that does not stay
  // returns from the job there. One that shall come needs `call_last` behind the barrier, and must have left before.
  void want_last(bool stays) { next_present_ = stays ? num_threads_ : num_threads_ - 1; }
  bool last_has_left() const { return num_left_.load(std::memory_order_acquire) == num_calls_; }
  void call_last();

  // On the last thread, behind a barrier.
  bool last_stays() const { return num_present_.load(std::memory_order_relaxed) == num_threads_; }

 private:
  void helper_loop(int thread);
  int last() const { return num_threads_ - 1; }

  const int num_threads_;
  std::mutex caller_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  uint32_t num_calls_ = 0;  // of the last thread, ever; of the caller's thread alone
  uint32_t num_returns_ = 0;  // that the caller waits for
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> last_generation_{0};
  std::atomic<uint32_t> num_left_{0};
  // How many a barrier waits for changes only within it, while all who take part stand there.
  std::atomic<int> num_present_;
  int next_present_;
  alignas(64) std::atomic<uint32_t> num_done_{0};
  alignas(64) std::atomic<int> num_at_barrier_{0};
  alignas(64) std::atomic<uint32_t> barrier_generation_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace interleaf
