#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// What `--resume` says.
struct Resume {
  enum class Mode : std::uint8_t {
    Auto,   // continue the newest valid checkpoint of the run's directory, start where there is none
    Never,  // start; a directory with a run in it is an error
    Path,   // continue the checkpoint `path`
  };
  Mode mode = Mode::Auto;
  std::filesystem::path path;

  /// "auto", "never" or a path.
  [[nodiscard]] static Resume parse(std::string_view text);
};

struct RunOptions {
  std::filesystem::path directory;  // --run-dir; empty: <root>/<name>-<first 8 digits of the hash>
  std::filesystem::path root = "runs";
  std::string place_option = "--run-dir";  // what messages say to choose another of: in a sweep, --runs-dir
  std::string name;                        // run.name
  std::string config_hash;                 // hexadecimal, at least 8 digits; what may change on a resume is not in it
  std::string config_text;                 // the user's file, byte for byte
  std::string resolved_text;               // the configuration that runs
  nlohmann::json info;                     // goes into run.json: versions, seed, device, command_line, ...
  Resume resume;
};

/// A run's own directory:
///
///   config.toml  resolved.toml  run.json  metrics.jsonl  eval.jsonl  ckpt/
///
/// run.json holds the caller's `info` and name, config_hash, host, pid, job (SLURM variables), started, ended,
/// exit_status (both null while the run is going on) and message, all of the latest process; the processes that
/// worked on the run before are the elements of `earlier`, oldest first.
///
/// As long as this object lives, a lock keeps other processes from writing to the directory.
class RunDirectory {
 public:
  /// Opens or creates it. Nothing is touched, not even created, unless all is in order. Throws ConfigError if the
  /// directory holds a run of another configuration (naming both hashes and the first keys that differ), any run where
  /// `resume` is Never, or something that is no run; DataError if its run.json is damaged or the checkpoint to resume
  /// does not exist; EnvironmentError if another process has the lock or the file system refuses.
  explicit RunDirectory(const RunOptions& options);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  /// Where the run of these options lies, without touching it.
  [[nodiscard]] static std::filesystem::path locate(const RunOptions& options);
  /// Everything the constructor refuses, except for the lock. For checks before expensive work, and dry runs.
  static void check(const RunOptions& options);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  [[nodiscard]] std::filesystem::path evaluations() const { return path_ / "eval.jsonl"; }
  [[nodiscard]] std::filesystem::path checkpoints() const { return path_ / "ckpt"; }
  /// Whether a run was there already.
  [[nodiscard]] bool existed() const { return existed_; }
  /// What is worth a line of output, such as a file system without locks.
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }

  /// What is now where the directory was. Where that is not its own, nothing may be saved there. A file system that
  /// does not answer says nothing about it.
  enum class Place : std::uint8_t {
    Own,
    OtherLock,  // it is there, but its .lock is another file, which another process may have locked
    Gone,       // it was moved, removed or replaced
  };
  [[nodiscard]] Place place() const;
  [[nodiscard]] bool in_place() const { return place() == Place::Own; }
  /// Throws EnvironmentError, saying what happened, unless the place is its own.
  void check_in_place() const;
  /// Adds or replaces entries of run.json. Throws like check_in_place().
  void update(const nlohmann::json& entries);
  /// Records how the run ended. A run whose process was killed keeps null as its exit status.
  void finish(int exit_status, std::string_view message = {});

 private:
  void lock(const RunOptions& options);
  void write_record() const;
  std::filesystem::path path_;
  nlohmann::json record_;
  int lock_fd_ = -1;
  bool existed_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace graft
