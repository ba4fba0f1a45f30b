#include "isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace interleaf {

namespace {

#if defined(__x86_64__)
// For tests. CPUs that execute products of bf16 may be in a virtual machine that hides them.
#if defined(INTERLEAF_EMULATE_TILES)
constexpr bool kEmulatesTiles = true;
#else
constexpr bool kEmulatesTiles = false;
#endif

// VNNI on 256 bits, encoded as AVX2 is.
bool cpu_has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4));
}

bool cpu_has_amx_bf16() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned needed = (1u << 22) | (1u << 24) | (1u << 25);  // AMX-BF16, AMX-TILE, AMX-INT8
  return (edx & needed) == needed;
}

// Linux gives a process tile registers only on request (arch_prctl, since 5.16).
bool kernel_grants_tiles() {
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

const char* level_name(Level level) {
  switch (level) {
    case Level::kPortable: return "portable";
    case Level::kAvx2: return "avx2";
    case Level::kAvx2Vnni: return "avx2_vnni";
    case Level::kAvx512: return "avx512";
    case Level::kAvx512Vnni: return "avx512_vnni";
    case Level::kAvx512Bf16: return "avx512_bf16";
    case Level::kAmx: return "amx";
  }
  return "?";
}

std::vector<Level> usable_levels() {
  std::vector<Level> levels{Level::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return levels;
  levels.push_back(Level::kAvx2);
  if (cpu_has_avx_vnni()) levels.push_back(Level::kAvx2Vnni);
  for (bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                   __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0})
    if (!has) return levels;
  levels.push_back(Level::kAvx512);
  if (!__builtin_cpu_supports("avx512vnni")) return levels;
  levels.push_back(Level::kAvx512Vnni);
  if (!kEmulatesTiles && !__builtin_cpu_supports("avx512bf16")) return levels;
  // From Sapphire Rapids on (which AVX-VNNI tells from Cooper Lake) Intel's CPUs take two clocks for a product of bf16, in
  // which they do twice as many of float32.
  const bool slow_bf16 = __builtin_cpu_is("intel") && cpu_has_avx_vnni();
  levels.insert(levels.end() - (slow_bf16 ? 1 : 0), Level::kAvx512Bf16);
  if (kEmulatesTiles || (cpu_has_amx_bf16() && kernel_grants_tiles())) levels.push_back(Level::kAmx);
#endif
  return levels;
}

Level parse_level(const std::string& name) {
  for (Level level : usable_levels())
    if (name == level_name(level)) return level;
  throw std::invalid_argument("this machine has no instruction level '" + name + "'");
}

}  // namespace interleaf
