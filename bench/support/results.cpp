#include "bench/support/results.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <new>
#include <system_error>
#include <utility>

#include "train/command.h"
#include "train/file_io.h"

namespace graft::bench {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

}  // namespace

ResultFile::ResultFile(std::string_view command, std::string path) : command_(command), path_(std::move(path)) {
  if (path_.empty()) return;
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(path_, ignored);
  const bool exists = fs::exists(status);
  if (exists && ::access(path_.c_str(), W_OK) != 0) throw_system_error(command_ + ": cannot write", path_, errno);
  if (fs::is_directory(fs::status(path_, ignored))) throw_system_error(command_ + ": cannot write", path_, EISDIR);
  const bool folder_takes_files = ::access(folder_of(path_).c_str(), W_OK) == 0;
  const int reason = errno;
  if (!exists && !folder_takes_files) throw_system_error(command_ + ": cannot create", path_, reason);
  replaces_ = folder_takes_files && (!exists || fs::is_regular_file(status));
}

void ResultFile::write(std::string text) {
  text_ = std::move(text);
  if (!wanted() || !replaces_) return;
  try {
    put();
    problem_.clear();
  } catch (const Error& error) {
    problem_ = error.what();
  }
}

void ResultFile::close() {
  if (!wanted()) return;
  try {
    if (!replaces_ || !problem_.empty()) put();
  } catch (const Error& error) {
    const fs::path folder = fs::absolute(folder_of(path_));
    throw EnvironmentError(fmt::format("{}: {} does not hold all results: {} ({})", command_, path_, error.what(),
                                       room_text(text_.size(), folder, available_on_disk(folder))));
  }
}

void ResultFile::put() {
  if (replaces_) return replace_text_file(path_, text_);
  std::ofstream file(path_);
  file << text_;
  if (!file.flush()) throw_system_error("cannot write", path_, errno);
}

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
