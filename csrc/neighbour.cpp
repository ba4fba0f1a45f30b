#include "neighbour.h"

#include <cstring>
#include <string>

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace interleaf {

#if defined(__linux__)

Neighbour::~Neighbour() { watch(0); }

void Neighbour::watch(int pid) {
  if (file_ >= 0) close(file_);
  file_ = -1;
  if (pid <= 0) return;
  const std::string id = std::to_string(pid);
  file_ = open(("/proc/" + id + "/task/" + id + "/stat").c_str(), O_RDONLY | O_CLOEXEC);
}

bool Neighbour::is_running() const {
  // "pid (name) state ...": the name has at most 16 bytes.
  char text[64];
  const ssize_t length = file_ < 0 ? 0 : pread(file_, text, sizeof(text) - 1, 0);
  if (length <= 0) return false;
  text[length] = 0;
  const char* name_end = std::strrchr(text, ')');
  return name_end && name_end[1] == ' ' && name_end[2] == 'R';
}

#else

Neighbour::~Neighbour() = default;
void Neighbour::watch(int) {}
bool Neighbour::is_running() const { return false; }

#endif

}  // namespace interleaf
