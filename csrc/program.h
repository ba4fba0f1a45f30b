// A recorded forward pass: an array of kernels with their buffers, replayed by the team with a barrier after each.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "kernels.h"
#include "memory.h"
#include "neighbour.h"
#include "thread_team.h"

namespace interleaf {

// What a kernel's rows count.
enum class Rows : int32_t { kTokens = 0, kLogits = 1, kSequences = 2 };

// How many there are of each in one step.
struct StepSize {
  int num_tokens;
  int num_logits;
  int num_sequences;

  int of(Rows rows) const { return rows == Rows::kTokens ? num_tokens : rows == Rows::kLogits ? num_logits : num_sequences; }
};

// One kernel call with everything but its number of rows.
struct Op {
  static constexpr size_t kMaxArgs = 192;
  const char* name;
  void (*call)(const KernelTable&, const void* args, int rows, const Worker&);
  Rows rows;
  // A thread's part may be done in pieces, as if there were as many threads more. Attention counts its threads.
  bool divisible;
  alignas(8) char args[kMaxArgs];
};

class Program {
 public:
  // `kernel` is the member of the table, `Args` its argument struct, `name` a literal.
  template <auto kernel, typename Args>
  void add(const char* name, Rows rows, const Args& args) {
    static_assert(sizeof(Args) <= Op::kMaxArgs && std::is_trivially_copyable_v<Args>);
    Op op;
    op.name = name;
    op.rows = rows;
    op.divisible = !std::is_same_v<Args, AttentionArgs>;
    op.call = [](const KernelTable& table, const void* stored, int count, const Worker& worker) {
      (table.*kernel)(*static_cast<const Args*>(stored), count, worker);
    };
    std::memcpy(op.args, &args, sizeof(Args));
    ops_.push_back(op);
  }
  // Goes on with the ops of another.
  void append(const Program& other) { ops_.insert(ops_.end(), other.ops_.begin(), other.ops_.end()); }
  size_t size() const { return ops_.size(); }
  const std::vector<Op>& ops() const { return ops_; }

 private:
  std::vector<Op> ops_;
};

// The team, its scratch memory and the kernels of the chosen level.
class Runtime {
 public:
  // `scratch_bytes` of working memory a thread, at least kScratchBytes.
  Runtime(int num_threads, Level level, size_t scratch_bytes);

  Level level() const { return level_; }
  ThreadTeam& team() { return team_; }

  // Leaves a core to this process while it computes: the team's last thread then steps aside between two ops, and
  // thread 0 does its part of them, as it would have done it, until the last thread comes back to help. 0 is nobody.
  void give_way_to(int pid) { neighbour_.watch(pid); }

  // Runs a program and returns the nanoseconds it took.
  int64_t run(const Program& program, const StepSize& size);

  // The same, with the nanoseconds of each op as thread 0 sees them, its barrier included.
  std::vector<int64_t> profile(const Program& program, const StepSize& size);

  // Gigabytes a second at which the team reads `bytes` of its own memory: what memory-bound kernels are measured by.
  double read_probe(size_t bytes);

  // Runs one kernel and returns the nanoseconds it took.
  template <auto kernel, typename Args>
  int64_t run_one(const Args& args, int rows) {
    const auto start = std::chrono::steady_clock::now();
    team_.run([&](int thread) { (table_.*kernel)(args, rows, worker(thread)); });
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  Worker worker(int thread) {
    return {thread, team_.size(), static_cast<char*>(scratch_.data()) + scratch_bytes_ * static_cast<size_t>(thread)};
  }

  void run_beside_neighbour(const Program& program, const StepSize& size);
  // A piece of what an op has for `thread`, by whichever thread `self` is.
  void run_piece(const Op& op, int rows, int thread, int piece, int pieces, Worker self) {
    self.thread = thread * pieces + piece;
    self.num_threads = team_.size() * pieces;
    op.call(table_, op.args, rows, self);
  }

  Level level_;
  const KernelTable& table_;
  ThreadTeam team_;
  Neighbour neighbour_;
  size_t scratch_bytes_;
  Memory scratch_;
};

}  // namespace interleaf
