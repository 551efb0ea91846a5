// Spread independent pieces of work over threads. Pieces must write to places of their own; what they compute may not
// depend on which thread runs them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace pynas {

// Calls piece(0) ... piece(count - 1); the first exception is thrown again in the calling thread.
template <class Piece>
void for_each_piece(std::size_t count, int threads, const Piece& piece) {
  const std::size_t workers = std::min<std::size_t>(count, static_cast<std::size_t>(std::max(threads, 1)));
  if (workers <= 1) {
    for (std::size_t i = 0; i < count; ++i) piece(i);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) piece(i);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next.store(count);
    }
  };
  {
    std::vector<std::jthread> pool;
    pool.reserve(workers - 1);
    for (std::size_t i = 1; i < workers; ++i) pool.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

// The same over [0, items) in ranges of `grain`: piece(begin, end).
template <class Piece>
void for_each_range(std::size_t items, std::size_t grain, int threads, const Piece& piece) {
  for_each_piece((items + grain - 1) / grain, threads,
                 [&](std::size_t i) { piece(i * grain, std::min(items, (i + 1) * grain)); });
}

}  // namespace pynas
