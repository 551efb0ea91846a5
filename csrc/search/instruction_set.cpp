#include "instruction_set.hpp"

#include "text.hpp"

namespace pynas {
namespace {

struct Entry {
  const char* name;
  ScoreKernel kernel;
};

const std::vector<Entry>& available() {
  static const std::vector<Entry> entries = [] {
    std::vector<Entry> found{{"baseline", score_block_baseline}};
#if defined(PYNAS_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"avx2", score_block_avx2});
    if (__builtin_cpu_supports("avx512f")) found.push_back({"avx512", score_block_avx512});
#endif
    return found;
  }();
  return entries;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Entry& entry : available()) names.emplace_back(entry.name);
  return names;
}

ScoreKernel score_kernel(const std::string& instruction_set) {
  if (instruction_set == "auto") return available().back().kernel;
  std::string names = "auto";
  for (const Entry& entry : available()) {
    if (instruction_set == entry.name) return entry.kernel;
    names += text(", ", entry.name);
  }
  refuse("instruction_set is \"", instruction_set, "\"; this processor has ", names);
}

}  // namespace pynas
