#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <map>
#include <ranges>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"
#include "train/checkpoint_files.h"
#include "train/checkpoint_state.h"
#include "train/file_io.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kLatest = "latest";
constexpr std::string_view kTemporary = ".tmp-";          // being written
constexpr std::string_view kDisplaced = ".old-";          // being replaced or removed
constexpr std::string_view kHalfLatest = ".latest.tmp-";  // see replace_text_file()
constexpr std::string_view kAbandoned = "abandoned_";

std::optional<std::int64_t> step_of_path(const fs::path& path) { return step_of_name(path.filename().string()); }

/// Where a checkpoint is written before it gets its name.
fs::path temporary_of(const fs::path& directory, std::int64_t step) {
  return directory / fmt::format("{}{}-{}", kTemporary, name_of_step(step), ::getpid());
}

/// Which of two scores is better; the later checkpoint if they are equal.
bool at_least_as_good(const CheckpointScore& score, const CheckpointScore& than) {
  return score.higher_is_better ? score.value >= than.value : score.value <= than.value;
}

}  // namespace

CheckpointDirectory::CheckpointDirectory(const fs::path& directory, CheckpointOptions options)
    : directory_(without_trailing_slash(directory)), options_(std::move(options)) {
  if (!options_.available_bytes) options_.available_bytes = available_on_disk;
}

std::uint64_t CheckpointDirectory::bytes_needed(const CheckpointView& content) {
  // Tensors, a generous header for each, state and directory.
  std::uint64_t bytes = 64 * 1024 + 2 * content.state.dump(1, ' ', false, json::error_handler_t::replace).size();
  for (const auto* tensors : {&content.model, &content.optimizer}) {
    for (const CheckpointTensorView& tensor : *tensors) bytes += tensor.bytes() + tensor.name.size() + 256;
  }
  return bytes;
}

std::uint64_t CheckpointDirectory::bytes_available() const { return options_.available_bytes(directory_); }

void CheckpointDirectory::check_writable() const {
  require_reachable();
  const fs::path longest = temporary_of(directory_, kMostCheckpointStep) / "optimizer.safetensors";
  if (const std::size_t bytes = longest.native().size(); bytes >= PATH_MAX) {
    throw EnvironmentError(fmt::format(
        "checkpoint: nothing can be saved in {}: the path of a file in it may have {} bytes, and the system "
        "takes fewer than {}; choose a shorter --run-dir",
        directory_.string(), bytes, PATH_MAX));
  }
  std::error_code error;
  if (!fs::exists(directory_, error)) return;
  // Permissions do not tell of read-only disks and servers that say no: only creating something does. A second attempt,
  // since a file system that failed once may work, as save() expects it to.
  const fs::path probe = directory_ / fmt::format("{}probe-{}", kTemporary, ::getpid());
  const bool created = ::mkdir(probe.c_str(), 0777) == 0 || errno == EEXIST || ::mkdir(probe.c_str(), 0777) == 0;
  const int reason = errno;
  ::rmdir(probe.c_str());  // what stays is a leftover for the next save
  if (!created) throw_system_error("checkpoint: nothing can be saved in", directory_, reason);
}

void CheckpointDirectory::require_reachable() const {
  std::error_code error;
  const fs::file_type kind = fs::status(directory_, error).type();
  if (kind == fs::file_type::directory) return;
  if (kind == fs::file_type::not_found) {
    const fs::path target = fs::read_symlink(directory_, error);
    if (error) return;  // no link: not there yet
    throw EnvironmentError(
        fmt::format("checkpoint: {} leads to {}, which is not there", directory_.string(), target.string()));
  }
  if (kind == fs::file_type::none) throw_system_error("checkpoint: cannot look at", directory_, error.value());
  throw EnvironmentError(fmt::format("checkpoint: {} is not a directory", directory_.string()));
}

SavedCheckpoint CheckpointDirectory::save(const CheckpointView& content) {
  require(content.step >= 0, "checkpoint: step {}, expected none below 0", content.step);
  SavedCheckpoint saved{directory_ / name_of_step(content.step), find_nonfinite(content)};
  const fs::path temporary = temporary_of(directory_, content.step);
  std::string room;
  bool complete = false;
  try {
    require_reachable();
    if (fs::create_directory(directory_)) sync_directory(directory_.has_parent_path() ? directory_.parent_path() : ".");
    // What looks left over may be what a rename that is not on the disk yet has replaced.
    sync_directory(directory_);
    remove_leftovers();
    const std::uint64_t needed = bytes_needed(content);
    const std::uint64_t available = bytes_available();
    room = room_text(needed, directory_, available);
    if (needed > available) throw EnvironmentError("the disk is full");
    if (!saved.nonfinite.empty() && is_valid(saved.path)) return saved;
    known_valid_.erase(saved.path);
    fs::create_directory(temporary);
    write_checkpoint(content, saved.nonfinite, temporary);
    complete = true;
    publish(temporary, saved.path);
  } catch (const ArgumentError&) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  } catch (const std::exception& error) {  // ours, the file system library's, or out of memory
    // Once complete, `temporary` may have become the name of the one that was replaced, and the replacement may not be
    // on the disk: it waits for the next save, which makes sure.
    std::error_code ignored;
    if (!complete || !fs::exists(saved.path, ignored)) fs::remove_all(temporary, ignored);
    throw EnvironmentError(fmt::format("checkpoint: step {} was not saved: {}{}", content.step, error.what(),
                                       room.empty() ? "" : fmt::format(" ({})", room)));
  }
  if (!saved.nonfinite.empty()) return saved;
  known_valid_.insert(saved.path);
  try {
    replace_text_file(directory_ / kLatest, saved.path.filename().string() + "\n");
  } catch (const Error& error) {
    throw EnvironmentError(fmt::format("checkpoint: step {} is saved in {}, but `latest` does not name it: {}",
                                       content.step, saved.path.string(), error.what()));
  }
  return saved;
}

void CheckpointDirectory::publish(const fs::path& from, const fs::path& to) const {
  if (!fs::exists(fs::symlink_status(to))) {
    if (::rename(from.c_str(), to.c_str()) != 0) throw_system_error("cannot create", to, errno);
    sync_directory(directory_);
    return;
  }
  // Swapping is one operation: at no time is there no checkpoint of this step.
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    sync_directory(directory_);
    std::error_code ignored;  // what cannot be removed now is a leftover for the next save
    fs::remove_all(from, ignored);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) throw_system_error("cannot replace", to, errno);
  // Where the file system cannot swap, the old one waits under a name that by_step() still finds.
  const fs::path displaced = directory_ / fmt::format("{}{}-{}", kDisplaced, to.filename().string(), ::getpid());
  if (::rename(to.c_str(), displaced.c_str()) != 0) throw_system_error("cannot replace", to, errno);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int reason = errno;
    ::rename(displaced.c_str(), to.c_str());
    throw_system_error("cannot create", to, reason);
  }
  sync_directory(directory_);
  std::error_code ignored;
  fs::remove_all(displaced, ignored);
}

fs::path CheckpointDirectory::latest_target() const {
  const fs::path file = directory_ / kLatest;
  std::error_code error;
  if (!fs::exists(file, error)) return {};
  std::string name = read_text_file(file, 256);
  while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
  // Only a name of ours: the file must not lead anywhere else.
  if (!step_of_name(name)) throw DataError(fmt::format("checkpoint: {}: does not name a checkpoint", file.string()));
  return directory_ / name;
}

/// Paths of all checkpoints, by step. One that was displaced by a replacement that never arrived counts as its step.
std::vector<fs::path> CheckpointDirectory::by_step() const {
  std::map<std::int64_t, fs::path> found, displaced;
  std::error_code error;
  require_reachable();  // a link to a disk that is not mounted is not a run without checkpoints
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename().string();
    if (const auto step = step_of_name(name)) found[*step] = entry.path();
    if (!name.starts_with(kDisplaced)) continue;
    const auto step = step_of_name(name.substr(kDisplaced.size(), name.rfind('-') - kDisplaced.size()));
    if (step) displaced[*step] = entry.path();
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw_system_error("cannot list", directory_, error.value());
  }
  found.merge(displaced);
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::optional<CheckpointData> CheckpointDirectory::load_latest(
    CheckpointReport* report, CheckpointParts parts, const std::function<void(const CheckpointData&)>& accept) const {
  CheckpointReport unused;
  CheckpointReport& told = report == nullptr ? unused : *report;
  told = {};
  std::vector<fs::path> candidates = by_step();
  std::reverse(candidates.begin(), candidates.end());
  for (const fs::path& candidate : candidates) {
    try {
      CheckpointData data = load(candidate, parts);
      if (!data.nonfinite.empty()) {
        throw DataError(fmt::format("checkpoint: {}: {}: not finite", candidate.string(), data.nonfinite));
      }
      if (accept) accept(data);
      told.loaded = candidate;
      return data;
    } catch (const Error& error) {
      told.skipped.push_back({candidate, error.what()});
    }
  }
  if (candidates.empty()) return std::nullopt;
  std::string reasons;
  for (const auto& skipped : told.skipped) reasons += "; " + skipped.reason;
  throw DataError(
      fmt::format("checkpoint: none of the {} in {} is valid{}", candidates.size(), directory_.string(), reasons));
}

std::vector<CheckpointInfo> CheckpointDirectory::list() const {
  fs::path latest;
  try {
    latest = latest_target();
  } catch (const Error&) {  // then none of them is
  }
  std::vector<CheckpointInfo> infos;
  CheckpointInfo* best = nullptr;
  for (const fs::path& path : by_step()) {
    CheckpointInfo& info = infos.emplace_back();
    info.path = path;
    info.latest = path == latest;
    info.step = step_of_path(path).value_or(-1);
    try {
      const json manifest = read_manifest(path);
      info.step = manifest["step"].get<std::int64_t>();
      info.score = score_in(manifest);
      info.nonfinite = nonfinite_in(manifest);
      check_sizes(manifest, path);
      info.bytes = bytes_in(manifest, path);
    } catch (const Error& error) {
      info.problem = error.what();
    }
  }
  for (CheckpointInfo& info : infos) {
    if (!info.usable() || !info.score) continue;
    if (best == nullptr || at_least_as_good(*info.score, *best->score)) best = &info;
  }
  if (best != nullptr) best->best = true;
  return infos;
}

bool CheckpointDirectory::holds(const fs::path& checkpoint) const {
  try {
    const json other = read_manifest(without_trailing_slash(checkpoint));
    const fs::path own = directory_ / name_of_step(other["step"].get<std::int64_t>());
    std::error_code error;
    if (fs::equivalent(own, checkpoint, error)) return true;
    const json manifest = read_manifest(own);
    if (!same_tensors(manifest, other)) return false;
    check_contents(manifest, own);
  } catch (const Error&) {
    return false;
  }
  return true;
}

bool CheckpointDirectory::is_valid(const fs::path& path) {
  if (known_valid_.contains(path)) return true;
  try {
    const json manifest = read_manifest(path);
    if (!nonfinite_in(manifest).empty()) return false;
    check_contents(manifest, path);
  } catch (const Error&) {
    return false;
  }
  known_valid_.insert(path);
  return true;
}

std::vector<fs::path> CheckpointDirectory::surplus(const RetentionPolicy& policy) {
  require(policy.keep_last >= 1, "checkpoint: keep_last is {}, expected at least 1", policy.keep_last);
  require(policy.permanent_every >= 0, "checkpoint: permanent_every is {}, expected 0 or more", policy.permanent_every);
  const std::vector<CheckpointInfo> checkpoints = list();
  // Those that cannot be used do not count among the last ones. They stay as long as no newer one can be used.
  std::vector<fs::path> removed;
  int usable = 0;
  for (const CheckpointInfo& info : std::views::reverse(checkpoints)) {
    const bool permanent =
        policy.permanent_every > 0 && info.usable() && info.step > 0 && info.step % policy.permanent_every == 0;
    const bool kept = info.usable() ? usable < policy.keep_last : usable == 0;
    if (!kept && !permanent && !info.latest && !info.best) removed.push_back(info.path);
    if (info.usable()) ++usable;
  }
  if (removed.empty()) return removed;
  const auto newest_valid = std::find_if(checkpoints.rbegin(), checkpoints.rend(),
                                         [&](const CheckpointInfo& info) { return is_valid(info.path); });
  if (newest_valid != checkpoints.rend()) std::erase(removed, newest_valid->path);
  std::reverse(removed.begin(), removed.end());
  return removed;
}

std::vector<fs::path> CheckpointDirectory::prune(const RetentionPolicy& policy) {
  remove_leftovers();
  std::vector<fs::path> removed = surplus(policy);
  for (const fs::path& path : removed) {
    known_valid_.erase(path);
    remove_tree(path);
  }
  return removed;
}

std::optional<AbandonedCheckpoints> CheckpointDirectory::set_aside_after(std::int64_t step) {
  std::vector<fs::path> later;
  fs::path newest;
  for (const CheckpointInfo& info : list()) {
    if (info.step > step || step_of_path(info.path).value_or(-1) > step) {
      later.push_back(info.path);
    } else if (info.usable()) {
      newest = info.path;
    }
  }
  if (later.empty()) return std::nullopt;
  std::reverse(later.begin(), later.end());
  AbandonedCheckpoints result;
  try {
    std::int64_t number = 1;
    for (const AbandonedCheckpoints& earlier : abandoned()) {
      const std::string name = earlier.directory.filename().string();
      std::int64_t used = 0;
      std::from_chars(name.data() + kAbandoned.size(), name.data() + name.size(), used);
      number = std::max(number, used + 1);
    }
    result.directory = directory_ / fmt::format("{}{}", kAbandoned, number);
    fs::create_directory(result.directory);
    if (newest.empty()) {
      fs::remove(directory_ / kLatest);
    } else {
      replace_text_file(directory_ / kLatest, newest.filename().string() + "\n");
    }
    // Newest first: wherever this ends, what is left is the beginning of the old branch, which can be continued.
    for (const fs::path& path : later) {
      known_valid_.erase(path);
      const fs::path to = result.directory / path.filename();
      fs::rename(path, to);
      result.checkpoints.push_back(to);
    }
    sync_directory(result.directory);
    sync_directory(directory_);
  } catch (const fs::filesystem_error& error) {
    throw_system_error("checkpoint: cannot set aside", error.path1(), error.code().value());
  }
  std::reverse(result.checkpoints.begin(), result.checkpoints.end());
  return result;
}

std::vector<AbandonedCheckpoints> CheckpointDirectory::abandoned() const {
  std::map<std::int64_t, AbandonedCheckpoints> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kAbandoned)) continue;
    std::int64_t number = 0;
    const char* end = name.data() + name.size();
    const auto [parsed, problem] = std::from_chars(name.data() + kAbandoned.size(), end, number);
    if (problem != std::errc{} || parsed != end) continue;
    found[number] = {entry.path(), CheckpointDirectory(entry.path()).by_step()};
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw_system_error("cannot list", directory_, error.value());
  }
  std::vector<AbandonedCheckpoints> result;
  for (auto& [number, abandoned] : found) result.push_back(std::move(abandoned));
  return result;
}

void CheckpointDirectory::remove(const AbandonedCheckpoints& abandoned) { remove_tree(abandoned.directory); }

void CheckpointDirectory::remove_tree(const fs::path& path) const {
  // Renamed first: half of a removed checkpoint must not look like one.
  const fs::path doomed = directory_ / fmt::format("{}remove-{}-{}", kTemporary, path.filename().string(), ::getpid());
  std::error_code error;
  fs::rename(path, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) throw_system_error("checkpoint: cannot remove", path, error.value());
}

void CheckpointDirectory::remove_leftovers() const {
  std::vector<fs::path> leftovers;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kTemporary) || name.starts_with(kHalfLatest)) leftovers.push_back(entry.path());
    if (!name.starts_with(kDisplaced)) continue;
    const std::string original = name.substr(kDisplaced.size(), name.rfind('-') - kDisplaced.size());
    // The replacement never arrived: the old one gets its name back.
    if (!fs::exists(directory_ / original))
      fs::rename(entry.path(), directory_ / original, error);
    else
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, error);
}

}  // namespace graft
