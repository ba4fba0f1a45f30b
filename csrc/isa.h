// Instruction levels: each kernel file is compiled once per level, and one level is chosen at start.
#pragma once

#include <string>
#include <vector>

namespace interleaf {

// A machine that has a level has those before it, but for kAvx2Vnni, which many CPUs with AVX512 lack.
enum class Level { kPortable, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

const char* level_name(Level level);

// The levels this machine can run, best last. Asks the kernel for AMX tile state where the CPU has it.
std::vector<Level> usable_levels();

// The level named `name`; throws std::invalid_argument when this machine cannot run it.
Level parse_level(const std::string& name);

}  // namespace interleaf
