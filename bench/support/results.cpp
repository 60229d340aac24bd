#include "bench/support/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "train/command.h"

namespace graft::bench {

void Table::print(std::string_view text) {
  if (!arrives_) return;
  try {
    arrives_ = write_output(text);
  } catch (const EnvironmentError& error) {
    arrives_ = false;
    problem_ = error.what();
  }
}

void Table::close(const ResultFile& file) const {
  if (problem_.empty()) return;
  throw EnvironmentError(problem_ + (file.wanted() ? "; the results are in " + file.path() : std::string()));
}

std::string Failures::add(const std::string& name, const std::exception& error) {
  const auto* known = dynamic_cast<const Error*>(&error);
  std::string message = dynamic_cast<const std::bad_alloc*>(&error) != nullptr ? "out of host memory" : error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  if (count_++ == 0) {
    first_ = fmt::format("{}: {}", name, message);
    code_ = known == nullptr ? ExitCode::kEnvironment : known->exit_code();
  }
  return message;
}

void Failures::check(std::string_view command, std::size_t all) const {
  if (count_ == 0) return;
  throw Error(fmt::format("{}: {} of {} benchmarks failed, first {}", command, count_, all, first_), code_);
}

}  // namespace graft::bench
