// How a kernel spreads its work: over the threads of whoever calls it, since kernels know no thread pool.
#pragma once

#include <cstdint>

namespace pynas::kernels {

// Calls body(context, begin, end) for disjoint ranges that make up [0, count), possibly at once, and returns when all
// are done. A range is no shorter than `grain` unless it is the last. Results must not depend on how it is cut.
struct Parallel {
  void (*run)(int64_t count, int64_t grain, void (*body)(void* context, int64_t begin, int64_t end), void* context);
  int threads;

  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    run(
        count, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace pynas::kernels
