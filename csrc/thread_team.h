// A fixed team of threads that run one job together, with the caller as thread 0.
//
// Dispatch, join and barrier cost well under a microsecond while threads spin for one another. Whoever has waited for
// `kSpinMicroseconds` sleeps on a futex (through std::atomic::wait): an idle team costs nothing, and when another process
// has taken the core of the thread that is waited for, the sleeper's core is free for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace interleaf {

class ThreadTeam {
 public:
  using Job = void (*)(void* context, int thread);

  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return num_threads_; }

  // Runs `job(context, thread)` on every thread and returns when all have returned. One caller at a time
  // has the team; others wait.
  void run(Job job, void* context);

  template <typename Function>
  void run(Function&& function) {
    run([](void* context, int thread) { (*static_cast<std::remove_reference_t<Function>*>(context))(thread); },
        &function);
  }

  // Waits until every thread of the team has come here. Only inside a job.
  void barrier();

 private:
  void helper_loop(int thread);

  const int num_threads_;
  std::mutex caller_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> num_done_{0};
  alignas(64) std::atomic<int> num_at_barrier_{0};
  alignas(64) std::atomic<uint32_t> barrier_generation_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace interleaf
