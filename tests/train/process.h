#pragma once
// The built program as a process of its own.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temporary_directory.h"

namespace graft::test {

/// The program lies beside the test programs.
inline std::filesystem::path program() {
  std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "graft";
  CAPTURE(path.string());
  REQUIRE(std::filesystem::exists(path));  // not built?
  return path;
}

/// One process of graft; its output goes to files in a directory that is also its working directory.
class Process {
 public:
  struct Streams {
    int out = -1, err = -1;  // descriptors; -1: the file
  };
  Process(const std::filesystem::path& directory, const std::vector<std::string>& arguments)
      : Process(directory, arguments, Streams{}) {}
  Process(const std::filesystem::path& directory, const std::vector<std::string>& arguments, Streams streams)
      : out_(directory / "stdout.txt"), err_(directory / "stderr.txt") {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (streams.out >= 0) posix_spawn_file_actions_adddup2(&actions, streams.out, 1);
    if (streams.err >= 0) posix_spawn_file_actions_adddup2(&actions, streams.err, 2);
    posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());
    std::vector<std::string> words = {program().string()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int failed = posix_spawn(&pid_, words[0].c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    REQUIRE(failed == 0);
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) const { kill(pid_, number); }
  /// Waits until the process catches SIGINT: a signal before that ends it as it ends any program. False if the process
  /// ended before, or does not within a minute.
  [[nodiscard]] bool wait_for_guard() const {
    for (int i = 0; i < 60000; ++i) {
      std::ifstream status(fmt::format("/proc/{}/status", pid_));
      for (std::string line; std::getline(status, line);) {
        if (line.starts_with("State:") && line.find('Z') != std::string::npos) return false;
        if (!line.starts_with("SigCgt:")) continue;
        const auto caught = std::stoull(line.substr(line.find('\t') + 1), nullptr, 16);
        if ((caught >> (SIGINT - 1U) & 1U) != 0) return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  /// The exit code, or minus the signal that killed it.
  int wait() {
    int status = 0;
    REQUIRE(waitpid(pid_, &status, 0) == pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  [[nodiscard]] std::string out() const { return contents(out_); }
  [[nodiscard]] std::string err() const { return contents(err_); }

 private:
  std::filesystem::path out_, err_;
  pid_t pid_ = -1;
};

struct Result {
  int code = 0;
  std::string out, err;

  [[nodiscard]] std::string last_error_line() const {
    std::string text = err;
    while (text.ends_with('\n')) text.pop_back();
    const auto newline = text.rfind('\n');
    return newline == std::string::npos ? text : text.substr(newline + 1);
  }
};

inline Result run_graft(const std::filesystem::path& directory, const std::vector<std::string>& arguments) {
  Process process(directory, arguments);
  const int code = process.wait();
  return {code, process.out(), process.err()};
}

}  // namespace graft::test
