#include "program.h"

#include <algorithm>
#include <chrono>

namespace interleaf {

namespace {

// Between two looks at the neighbour, which cost some microseconds each.
constexpr std::chrono::microseconds kLookWhileAway{250}, kLookWhileHere{1000};

const KernelTable& table_of(Level level) {
  switch (level) {
#if defined(__x86_64__)
    case Level::kAvx2: return avx2::kTable;
    case Level::kAvx2Vnni: return avx2_vnni::kTable;
    case Level::kAvx512: return avx512::kTable;
    case Level::kAvx512Vnni: return avx512_vnni::kTable;
    case Level::kAvx512Bf16: return avx512_bf16::kTable;
    case Level::kAmx: return amx::kTable;
#endif
    default: return portable::kTable;
  }
}

}  // namespace

Runtime::Runtime(int num_threads, Level level, size_t scratch_bytes)
    : level_(level),
      table_(table_of(level)),
      team_(num_threads),
      scratch_bytes_((std::max(scratch_bytes, kScratchBytes) + 4095) / 4096 * 4096),
      scratch_(scratch_bytes_ * static_cast<size_t>(team_.size())) {}

double Runtime::read_probe(size_t bytes) {
  const size_t count = bytes / sizeof(float), threads = static_cast<size_t>(team_.size());
  Memory memory(bytes);
  float* data = static_cast<float*>(memory.data());
  std::vector<float> sums(threads);
  const auto part = [&](int thread) {
    const size_t t = static_cast<size_t>(thread);
    return std::pair(data + count * t / threads, count * (t + 1) / threads - count * t / threads);
  };
  team_.run([&](int thread) {
    const auto [begin, size] = part(thread);
    std::fill_n(begin, size, 1.0f);
  });
  const auto start = std::chrono::steady_clock::now();
  team_.run([&](int thread) {
    const auto [begin, size] = part(thread);
    sums[static_cast<size_t>(thread)] = table_.read_all(begin, size);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes) / seconds.count() * 1e-9;
}

std::vector<int64_t> Runtime::profile(const Program& program, const StepSize& size) {
  std::vector<int64_t> nanoseconds(program.size());
  team_.run([&](int thread) {
    const Worker self = worker(thread);
    for (size_t i = 0; i < program.size(); ++i) {
      const Op& op = program.ops()[i];
      const auto start = std::chrono::steady_clock::now();
      op.call(table_, op.args, size.of(op.rows), self);
      team_.barrier();
      if (thread == 0)
        nanoseconds[i] =
            std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
    }
  });
  return nanoseconds;
}

int64_t Runtime::run(const Program& program, const StepSize& size) {
  const auto start = std::chrono::steady_clock::now();
  if (neighbour_.watched() && team_.size() > 1) {
    run_beside_neighbour(program, size);
  } else {
    team_.run([&](int thread) {
      const Worker self = worker(thread);
      for (const Op& op : program.ops()) {
        op.call(table_, op.args, size.of(op.rows), self);
        team_.barrier();
      }
    });
  }
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
}

namespace {

// What two threads do of an op together: the last thread's part and thread 0's, in pieces that either takes.
class SharedPieces {
 public:
  // By thread 0, while the last thread is away.
  void lay_out(int pieces) {
    each_ = pieces;
    done_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_release);
  }
  // Takes pieces and does them, `run(of_last, piece, pieces)`, until none is left; `between()` behind each.
  template <typename Run, typename Between>
  void work(Run run, Between between) {
    for (int piece = next_++; piece < 2 * each_; piece = next_++) {
      run(piece >= each_, piece % each_, each_);
      done_.fetch_add(1, std::memory_order_release);
      done_.notify_one();
      between();
    }
  }
  void wait() const {
    const uint32_t all = 2 * static_cast<uint32_t>(each_);
    for (uint32_t done = done_.load(std::memory_order_acquire); done != all;) done = wait_for_change(done_, done);
  }

 private:
  int each_ = 0;
  std::atomic<int> next_{0};
  std::atomic<uint32_t> done_{0};
};

constexpr int kPieces = 4;  // of a thread's part, while a thread is away: the last one may come back behind any of them

}  // namespace

void Runtime::run_beside_neighbour(const Program& program, const StepSize& size) {
  const std::vector<Op>& ops = program.ops();
  const int last = team_.size() - 1;
  SharedPieces shared;
  // The op that all threads do next; while the last thread helps with an op before it, that is not known yet.
  constexpr uint32_t kUnknown = UINT32_MAX;
  std::atomic<uint32_t> resume{0};
  size_t helped = 0;
  // Thread 0's alone, as is `looked`.
  bool away = neighbour_.is_running();
  auto looked = std::chrono::steady_clock::now();
  const auto wants_core = [&] {
    const auto now = std::chrono::steady_clock::now();
    if (now - looked < (away ? kLookWhileAway : kLookWhileHere)) return away;
    looked = now;
    return neighbour_.is_running();
  };
  const auto work_on = [&](size_t i, const Worker& self, auto between) {
    const int rows = size.of(ops[i].rows);
    const auto run_one_of = [&](bool of_last, int piece, int pieces) {
      run_piece(ops[i], rows, of_last ? last : 0, piece, pieces, self);
    };
    shared.work(run_one_of, between);
  };
  // Returns whether the last thread has come back.
  const auto run_without_last = [&](size_t i, const Worker& self) {
    bool called = false;
    shared.lay_out(ops[i].divisible ? kPieces : 1);
    work_on(i, self, [&] {
      if (called || i + 1 == ops.size() || wants_core() || !team_.last_has_left()) return;
      called = true;
      helped = i;
      resume.store(kUnknown, std::memory_order_relaxed);
      team_.call_last();
    });
    shared.wait();
    return called;
  };
  const auto first_op = [&](const Worker& self) -> size_t {
    const uint32_t known = resume.load(std::memory_order_relaxed);
    if (known != kUnknown) return known;
    work_on(helped, self, [] {});
    return wait_for_change(resume, kUnknown);
  };
  team_.run(
      [&](int thread) {
        const Worker self = worker(thread);
        for (size_t i = thread == last ? first_op(self) : 0; i < ops.size(); ++i) {
          const Op& op = ops[i];
          if (thread != 0) {
            op.call(table_, op.args, size.of(op.rows), self);
            team_.barrier();
            if (thread == last && !team_.last_stays()) return;
            continue;
          }
          const bool comes = away && run_without_last(i, self);
          if (!away) op.call(table_, op.args, size.of(op.rows), self);
          const bool leaves = !away && wants_core();
          if (leaves || comes) team_.want_last(comes);
          team_.barrier();
          if (leaves || comes) away = leaves;
          if (comes) {
            resume.store(static_cast<uint32_t>(i + 1), std::memory_order_release);
            resume.notify_one();
          }
        }
      },
      away);
}

}  // namespace interleaf
