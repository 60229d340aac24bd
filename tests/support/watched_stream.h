#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace graft::test {

/// A stream that shows every line to a function as it is written, and keeps them.
class WatchedStream {
 public:
  explicit WatchedStream(std::function<void(std::string_view)> see) : see_(std::move(see)) {
    cookie_io_functions_t functions{};
    functions.write = [](void* self, const char* text, std::size_t size) {
      auto& watched = *static_cast<WatchedStream*>(self);
      watched.text_.append(text, size);
      watched.see_({text, size});
      return static_cast<ssize_t>(size);
    };
    file_ = ::fopencookie(this, "w", functions);
    REQUIRE(file_ != nullptr);
    std::setvbuf(file_, nullptr, _IOLBF, 4096);
  }
  ~WatchedStream() { std::fclose(file_); }
  WatchedStream(const WatchedStream&) = delete;
  WatchedStream& operator=(const WatchedStream&) = delete;
  [[nodiscard]] std::FILE* file() const { return file_; }
  [[nodiscard]] bool holds(const std::string& part) const { return text_.find(part) != std::string::npos; }

 private:
  std::function<void(std::string_view)> see_;
  std::string text_;
  std::FILE* file_ = nullptr;
};

}  // namespace graft::test
