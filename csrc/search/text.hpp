// Error messages: every refusal is a std::invalid_argument that says what came and what is allowed.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pynas {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw std::invalid_argument(text(parts...));
}

}  // namespace pynas
