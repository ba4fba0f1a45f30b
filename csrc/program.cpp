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

void Runtime::run_beside_neighbour(const Program& program, const StepSize& size) {
  const std::vector<Op>& ops = program.ops();
  const int last = team_.size() - 1;
  // Both are written by thread 0 alone; `resume` before it calls the last thread, which reads it then.
  size_t resume = 0;
  bool away = neighbour_.is_running();
  auto looked = std::chrono::steady_clock::now();
  const auto wants_core = [&] {
    const auto now = std::chrono::steady_clock::now();
    if (now - looked < (away ? kLookWhileAway : kLookWhileHere)) return away;
    looked = now;
    return neighbour_.is_running();
  };
  team_.run(
      [&](int thread) {
        const Worker self = worker(thread);
        for (size_t i = thread == last ? resume : 0; i < ops.size(); ++i) {
          const Op& op = ops[i];
          const int rows = size.of(op.rows);
          op.call(table_, op.args, rows, self);
          if (thread != 0) {
            team_.barrier();
            if (thread == last && !team_.last_stays()) return;
            continue;
          }
          if (away) op.call(table_, op.args, rows, worker(last));
          const bool wanted = wants_core(), leaves = wanted && !away;
          const bool comes = !wanted && away && i + 1 < ops.size() && team_.last_has_left();
          if (leaves || comes) team_.want_last(comes);
          team_.barrier();
          if (leaves || comes) away = leaves;
          if (comes) {
            resume = i + 1;
            team_.call_last();
          }
        }
      },
      away);
}

}  // namespace interleaf
