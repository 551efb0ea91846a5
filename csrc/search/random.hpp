// Counter-based random streams, so that results do not depend on which thread does which piece of work.
//
// Generator: SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
// Output i of a stream is mix(key + (i + 1) * gamma); the key is a hash of what the stream is for. Two streams are
// segments of one sequence of period 2^64 at unrelated offsets; that segments of a few thousand outputs overlap has a
// probability of about streams^2 * length / 2^64.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace pynas {

__extension__ using uint128 = unsigned __int128;

inline constexpr std::uint64_t splitmix_gamma = 0x9e3779b97f4a7c15u;

constexpr std::uint64_t splitmix_mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// What a stream is for: streams of different purposes are unrelated under the same seed.
enum class Purpose : std::uint64_t { rejection = 1, repair, range, restart, children };

class Stream {
 public:
  Stream(std::uint64_t seed, Purpose purpose, std::initializer_list<std::uint64_t> counters) {
    key_ = splitmix_mix(seed + splitmix_gamma);
    key_ = splitmix_mix(key_ ^ static_cast<std::uint64_t>(purpose)) + splitmix_gamma;
    for (const std::uint64_t counter : counters) key_ = splitmix_mix(key_ ^ counter) + splitmix_gamma;
  }

  std::uint64_t next() { return splitmix_mix(key_ += splitmix_gamma); }

  // Uniform in [0, count) by Lemire's multiplication; the bias is below count / 2^64.
  std::uint32_t below(std::uint32_t count) {
    return static_cast<std::uint32_t>((static_cast<uint128>(next()) * count) >> 64);
  }

 private:
  std::uint64_t key_;
};

}  // namespace pynas
