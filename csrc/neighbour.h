// Whether a process that shares the machine with the team wants a core right now.
#pragma once

namespace interleaf {

// The main thread of another process, as Linux tells of it; elsewhere it never wants anything.
class Neighbour {
 public:
  Neighbour() = default;
  ~Neighbour();
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;

  // Watch this process from now on; 0 watches none. Not while `is_running` is called.
  void watch(int pid);
  bool watched() const { return file_ >= 0; }

  // Computes, or waits for a core. Takes some microseconds.
  bool is_running() const;

 private:
  int file_ = -1;
};

}  // namespace interleaf
