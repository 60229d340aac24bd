#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <system_error>

#include "engine/error.h"
#include "engine/require.h"
#include "engine/settings.h"
#include "train/config.h"
#include "train/file_io.h"
#include "train/json_lines.h"
#include "train/run_name.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kMaxRecord = 1U << 28U;
constexpr const char* kRecord = "run.json";
constexpr const char* kLock = ".lock";
constexpr std::size_t kShownDigits = 8;
constexpr std::size_t kShownDifferences = 3;
// By which a process knows the record it wrote.
constexpr std::array<const char*, 4> kOfTheProcess = {"pid", "host", "started", "ended"};
// What distinguishes the processes of a run from each other; the rest of run.json is about the run.
constexpr std::array<const char*, 3> kOfTheRun = {"name", "config_hash", "earlier"};

std::string now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::chrono::system_clock::now())); }

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

json job_ids() {
  json job = json::object();
  for (const char* variable :
       {"SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION",
        "SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"}) {
    if (const char* value = std::getenv(variable)) job[variable] = value;
  }
  return job;
}

/// Whether the directory holds nothing but what a process that died while creating a run may have left.
bool is_unused(const fs::path& directory) {
  return std::all_of(fs::directory_iterator(directory), fs::directory_iterator(), [](const auto& entry) {
    const std::string name = entry.path().filename().string();
    return name == kLock || name.starts_with(fmt::format(".{}.tmp-", kRecord));
  });
}

/// The first keys in which the run in `directory` differs from this one, a line each; empty if that cannot be told.
std::string differences(const RunOptions& options, const fs::path& directory) {
  const fs::path file = directory / "resolved.toml";
  if (!fs::exists(file)) return {};
  const std::vector<std::string> list =
      identity_differences(std::string_view(read_text_file(file, kMaxRecord)), options.resolved_text);
  if (list.empty()) return {};
  std::string text = fmt::format("run: the configuration in {} differs from this one:\n", directory.string());
  for (std::size_t i = 0; i < std::min(list.size(), kShownDifferences); ++i) text += fmt::format("  {}\n", list[i]);
  if (list.size() > kShownDifferences) text += fmt::format("  ... and {} more\n", list.size() - kShownDifferences);
  return text;
}

/// Refuses a place among another run's checkpoints, which that run clears up.
void check_is_outside(const RunOptions& options, const fs::path& directory) {
  std::error_code error;  // a path that cannot be resolved is looked at as it stands
  const fs::path resolved = fs::weakly_canonical(directory, error);
  for (fs::path path = error ? fs::absolute(directory) : resolved; path.has_relative_path();
       path = path.parent_path()) {
    if (path.filename() == "ckpt" && fs::exists(path.parent_path() / kRecord)) {
      throw ConfigError(
          fmt::format("run: {} lies among the checkpoints of the run {}, which removes old ones; choose another {}",
                      directory.string(), path.parent_path().string(), options.place_option));
    }
  }
}

/// run.json of the run in `directory`; none if there is no run yet. Reads only.
std::optional<json> find_run(const RunOptions& options, const fs::path& directory) {
  const std::string shown = directory.string();
  check_is_outside(options, directory);
  if (!fs::exists(directory)) return std::nullopt;
  if (!fs::is_directory(directory)) throw ConfigError(fmt::format("run: {} is not a directory", shown));
  if (!fs::exists(directory / kRecord)) {
    if (is_unused(directory)) return std::nullopt;
    throw ConfigError(fmt::format("run: {} is not empty and holds no run ({} is missing); choose another {}", shown,
                                  kRecord, options.place_option));
  }
  json record = parse_json(read_text_file(directory / kRecord, kMaxRecord));
  const json hash = record.is_object() ? record.value("config_hash", json()) : json();
  if (!hash.is_string()) throw DataError(fmt::format("run: {} is damaged", (directory / kRecord).string()));
  if (hash != options.config_hash) {
    throw ConfigError(fmt::format(
        "{}run: {} holds a run of another configuration: its hash is {}, this one's {}; "
        "choose another {} or the configuration it was started with",
        differences(options, directory), shown, hash.get<std::string>(), options.config_hash, options.place_option));
  }
  if (options.resume.mode == Resume::Mode::Never) {
    throw ConfigError(fmt::format("run: {} holds a run and --resume is never; choose another {} or --resume auto",
                                  shown, options.place_option));
  }
  return record;
}

/// Throws if the run must not start; otherwise find_run().
std::optional<json> check_all(const RunOptions& options, const fs::path& directory) {
  try {
    if (options.resume.mode == Resume::Mode::Path && !fs::is_directory(options.resume.path)) {
      throw DataError(fmt::format("run: --resume {}: no such checkpoint", options.resume.path.string()));
    }
    return find_run(options, directory);
  } catch (const fs::filesystem_error& error) {
    throw_system_error("run: cannot look at", error.path1(), error.code().value());
  }
}

}  // namespace

Resume Resume::parse(std::string_view text) {
  if (text == "auto") return {Mode::Auto, {}};
  if (text == "never") return {Mode::Never, {}};
  if (text.empty()) throw ConfigError("run: --resume is empty, expected auto, never or the path of a checkpoint");
  return {Mode::Path, fs::path(text)};
}

fs::path RunDirectory::locate(const RunOptions& options) {
  require(options.config_hash.size() >= kShownDigits, "run: the hash '{}', expected at least {} digits",
          options.config_hash, kShownDigits);
  if (!options.directory.empty()) return options.directory;
  if (!is_run_name(options.name)) {
    throw ConfigError(fmt::format("run.name is {}, expected {}", quoted_text(options.name), kRunNameRule));
  }
  return options.root / fmt::format("{}-{}", options.name, options.config_hash.substr(0, kShownDigits));
}

void RunDirectory::check(const RunOptions& options) { check_all(options, locate(options)); }

RunDirectory::RunDirectory(const RunOptions& options) : path_(locate(options)) {
  check_all(options, path_);
  create_directories_durably("run: cannot create", path_);
  lock(options);
  try {
    // Again, now that nobody else can be creating a run here.
    const std::optional<json> before = check_all(options, path_);
    existed_ = before.has_value();
    record_ = options.info.is_object() ? options.info : json::object();
    record_["name"] = options.name;
    record_["config_hash"] = options.config_hash;
    record_["host"] = host_name();
    record_["pid"] = ::getpid();
    record_["job"] = job_ids();
    record_["started"] = now();
    record_["ended"] = nullptr;
    record_["exit_status"] = nullptr;
    record_["message"] = "";
    record_["earlier"] = json::array();
    if (before) {
      if (before->value("earlier", json()).is_array()) record_["earlier"] = (*before)["earlier"];
      json process = *before;
      for (const char* key : kOfTheRun) process.erase(key);
      // What may change on a resume is overwritten below; the configuration that ran until now stays on record.
      if (fs::exists(path_ / "resolved.toml")) {
        const std::string resolved = read_text_file(path_ / "resolved.toml", kMaxRecord);
        if (resolved != options.resolved_text) process["resolved_toml"] = resolved;
      }
      record_["earlier"].push_back(std::move(process));
    }
    write_record();
    replace_text_file(path_ / "config.toml", options.config_text);
    replace_text_file(path_ / "resolved.toml", options.resolved_text);
  } catch (...) {
    ::close(lock_fd_);
    throw;
  }
}

RunDirectory::~RunDirectory() {
  if (lock_fd_ >= 0) ::close(lock_fd_);  // releases the lock; the file stays, since others may be waiting to open it
}

void RunDirectory::lock(const RunOptions& options) {
  const fs::path file = path_ / kLock;
  lock_fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_fd_ < 0) throw_system_error("run: cannot create", file, errno);
  if (::flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    if (reason == ENOSYS || reason == EOPNOTSUPP || reason == ENOLCK) {
      warnings_.push_back(fmt::format(
          "the file system of {} has no locks: make sure that only one process writes there", path_.string()));
      return;
    }
    std::array<char, 256> owner{};
    const ssize_t length = ::pread(lock_fd_, owner.data(), owner.size() - 1, 0);
    ::close(lock_fd_);
    lock_fd_ = -1;
    if (reason != EWOULDBLOCK) throw_system_error("run: cannot lock", file, reason);
    throw EnvironmentError(fmt::format("run: {} is in use by another process{}{}; wait for it or choose another {}",
                                       path_.string(), length > 0 ? ": " : "", owner.data(), options.place_option));
  }
  // For the message above, in another process; it is no error if this cannot be written.
  const std::string owner = fmt::format("pid {} on {}", ::getpid(), host_name());
  const bool emptied = ::ftruncate(lock_fd_, 0) == 0;
  [[maybe_unused]] const ssize_t written = emptied ? ::pwrite(lock_fd_, owner.data(), owner.size(), 0) : 0;
}

void RunDirectory::write_record() const {
  replace_text_file(path_ / kRecord,
                    with_finite_numbers(record_).dump(1, ' ', false, json::error_handler_t::replace) + "\n");
}

RunDirectory::Place RunDirectory::place() const {
  const FoundAt lock = find_at(path_ / kLock, lock_fd_);
  if (lock == FoundAt::Same) return Place::Own;
  // Perhaps it is only the lock's file, which somebody may have taken for a leftover: run.json tells.
  json record;
  try {
    record = parse_json(read_text_file(path_ / kRecord, kMaxRecord));
  } catch (const DataError&) {  // there is none
    return Place::Gone;
  } catch (const EnvironmentError&) {  // nobody can tell
    return lock == FoundAt::Nothing ? Place::Own : Place::OtherLock;
  }
  if (lock == FoundAt::Nothing) return Place::Own;
  const bool own = std::all_of(kOfTheProcess.begin(), kOfTheProcess.end(), [&](const char* key) {
    return record.is_object() && record.value(key, json()) == record_.at(key);
  });
  return own ? Place::OtherLock : Place::Gone;
}

void RunDirectory::check_in_place() const {
  switch (place()) {
    case Place::Own:
      return;
    case Place::OtherLock:
      throw EnvironmentError(fmt::format(
          "run: the .lock in {} was replaced, so that another process may be writing there", path_.string()));
    case Place::Gone:
      break;
  }
  throw EnvironmentError(fmt::format(
      "run: {} is no longer the directory this run began in: it was moved, removed or replaced", path_.string()));
}

void RunDirectory::update(const json& entries) {
  check_in_place();
  record_.update(entries);
  write_record();
}

void RunDirectory::finish(int exit_status, std::string_view message) {
  update({{"ended", now()}, {"exit_status", exit_status}, {"message", message}});
}

}  // namespace graft
