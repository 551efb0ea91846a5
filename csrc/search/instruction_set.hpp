// Which score kernels this build has and this processor can run.
#pragma once

#include <string>
#include <vector>

#include "score_kernel.hpp"

namespace pynas {

// Names from the plainest to the widest: "baseline", then "avx2" and "avx512" where the processor has them.
std::vector<std::string> instruction_sets();

// The kernel of that name, or the widest for "auto". Refuses names that instruction_sets() does not give.
ScoreKernel score_kernel(const std::string& instruction_set);

}  // namespace pynas
