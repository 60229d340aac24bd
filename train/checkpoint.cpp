#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"
#include "train/file_io.h"
#include "train/json_lines.h"
#include "train/safetensors.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormat = 1;
constexpr std::uint64_t kMaxManifest = 1U << 20U;
constexpr std::uint64_t kMaxState = 1U << 28U;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kState = "state.json";
constexpr std::array<const char*, 3> kFiles = {kModel, kOptimizer, kState};
constexpr const char* kLatest = "latest";
constexpr std::string_view kPrefix = "step_";
constexpr std::string_view kTemporary = ".tmp-";  // being written
constexpr std::string_view kDisplaced = ".old-";  // being replaced or removed

/// The n of "step_<n>", written without leading zeros; none for any other name.
std::optional<std::int64_t> step_of_name(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc{} || end != digits.data() + digits.size() || step < 0) return std::nullopt;
  if (fmt::format("{}", step) != digits) return std::nullopt;
  return step;
}

std::optional<std::int64_t> step_of_path(const fs::path& path) { return step_of_name(path.filename().string()); }

std::string name_of_step(std::int64_t step) { return fmt::format("{}{}", kPrefix, step); }

/// The same name for a checkpoint however its path is written ("ckpt/step_5/").
fs::path without_trailing_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

std::string checksum_of(json manifest) {
  manifest.erase("checksum");
  return digest_of_text(manifest.dump()).xxh3_128;  // object keys are sorted: one text for one content
}

/// The manifest of a checkpoint, whose own checksum and form are right.
json read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kManifest;
  const json manifest = json::parse(read_text_file(path, kMaxManifest), nullptr, /*allow_exceptions=*/false);
  const auto fail = [&](const char* what) { throw DataError(fmt::format("checkpoint: {}: {}", path.string(), what)); };
  if (!manifest.is_object() || !manifest.contains("checksum")) fail("not a manifest");
  if (manifest["checksum"] != checksum_of(manifest)) fail("its checksum is wrong: the file is damaged");
  if (manifest.value("format", json()) != kFormat) {
    fail("written in another format; this program reads format 1");
  }
  const auto files = manifest.find("files");
  if (files == manifest.end() || !files->is_object()) fail("does not list the files");
  for (const char* name : kFiles) {
    const auto file = files->find(name);
    if (file == files->end() || !file->is_object() || !file->value("bytes", json()).is_number_unsigned() ||
        !file->value("xxh3_128", json()).is_string()) {
      throw DataError(fmt::format("checkpoint: {}: does not describe {}", path.string(), name));
    }
  }
  const json step = manifest.value("step", json());
  if (!step.is_number_integer()) fail("has no step");
  // A directory that a person copied under another name stays readable; a renamed step is a mistake.
  const auto named = step_of_path(checkpoint);
  if (named && step != *named) fail("holds another step than the directory's name says");
  return manifest;
}

void check_size(const json& manifest, const fs::path& checkpoint, const char* name) {
  const auto expected = manifest["files"][name]["bytes"].get<std::uint64_t>();
  const std::uint64_t actual = InputFile(checkpoint / name).size();
  if (actual != expected) {
    throw DataError(
        fmt::format("checkpoint: {}: {} bytes, expected {}", (checkpoint / name).string(), actual, expected));
  }
}

void check_content(const json& manifest, const fs::path& checkpoint, const char* name) {
  check_size(manifest, checkpoint, name);
  const auto expected = manifest["files"][name]["xxh3_128"].get<std::string>();
  const std::string actual = digest_of_file(checkpoint / name).xxh3_128;
  if (actual != expected) {
    throw DataError(fmt::format("checkpoint: {}: XXH3-128 is {}, expected {}: the file is damaged",
                                (checkpoint / name).string(), actual, expected));
  }
}

std::vector<CheckpointTensor> read_tensors(const fs::path& path) {
  const SafetensorsFile file(path);
  std::vector<CheckpointTensor> tensors;
  tensors.reserve(file.tensors().size());
  for (const SafetensorsEntry& entry : file.tensors()) {
    tensors.push_back({entry.name, entry.dtype, entry.shape, std::vector<std::byte>(entry.end - entry.begin)});
    file.read(entry, tensors.back().data);
  }
  return tensors;
}

FileDigest write_tensors(const fs::path& path, const std::vector<CheckpointTensor>& tensors, std::int64_t step) {
  std::vector<SafetensorsDeclaration> declarations;
  std::map<std::string_view, const CheckpointTensor*> by_name;
  for (const CheckpointTensor& tensor : tensors) {
    const std::size_t expected = static_cast<std::size_t>(tensor.shape.elements()) * size_of(tensor.dtype);
    require(tensor.data.size() == expected, "checkpoint: tensor '{}' has {} bytes, expected {} for {} {}", tensor.name,
            tensor.data.size(), expected, name_of(tensor.dtype), tensor.shape.str());
    declarations.push_back({tensor.name, tensor.dtype, tensor.shape});
    by_name[tensor.name] = &tensor;
  }
  SafetensorsWriter writer(path, std::move(declarations), {{"producer", "graft"}, {"step", fmt::format("{}", step)}});
  for (const auto& declaration : writer.order()) writer.append(declaration.name, by_name.at(declaration.name)->data);
  return writer.finish();
}

FileDigest write_text(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.append(text);
  return file.finish();
}

/// An upper bound of what a checkpoint takes: tensors, a generous header for each, state and directory.
std::uint64_t bytes_needed(const CheckpointData& data) {
  std::uint64_t bytes = 64 * 1024 + 2 * data.state.dump(1, ' ', false, json::error_handler_t::replace).size();
  for (const auto* tensors : {&data.model, &data.optimizer}) {
    for (const CheckpointTensor& tensor : *tensors) bytes += tensor.data.size() + tensor.name.size() + 256;
  }
  return bytes;
}

std::uint64_t available_on_disk(const fs::path& directory) {
  struct statvfs status {};
  if (::statvfs(directory.c_str(), &status) != 0) throw_system_error("cannot ask for free space of", directory, errno);
  return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
}

}  // namespace

CheckpointDirectory::CheckpointDirectory(const fs::path& directory, CheckpointOptions options)
    : directory_(without_trailing_slash(directory)), options_(std::move(options)) {
  if (!options_.available_bytes) options_.available_bytes = available_on_disk;
}

fs::path CheckpointDirectory::save(const CheckpointData& data) {
  require(data.step >= 0, "checkpoint: step {}, expected none below 0", data.step);
  const fs::path target = directory_ / name_of_step(data.step);
  const fs::path temporary = directory_ / fmt::format("{}{}-{}", kTemporary, name_of_step(data.step), ::getpid());
  try {
    if (fs::create_directories(directory_))
      sync_directory(directory_.has_parent_path() ? directory_.parent_path() : ".");
    remove_leftovers();
    const std::uint64_t needed = bytes_needed(data);
    const std::uint64_t available = options_.available_bytes(directory_);
    if (needed > available) {
      throw EnvironmentError(fmt::format("{} bytes are needed in {} and {} are available; free some space", needed,
                                         directory_.string(), available));
    }
    fs::create_directory(temporary);
    write(data, temporary);
    publish(temporary, target);
    known_valid_.insert(target);
  } catch (const ArgumentError&) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  } catch (const std::exception& error) {  // ours, the file system library's, or out of memory
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw EnvironmentError(fmt::format("checkpoint: step {} was not saved: {}", data.step, error.what()));
  }
  try {
    replace_text_file(directory_ / kLatest, target.filename().string() + "\n");
  } catch (const Error& error) {
    throw EnvironmentError(fmt::format("checkpoint: step {} is saved in {}, but `latest` does not name it: {}",
                                       data.step, target.string(), error.what()));
  }
  return target;
}

void CheckpointDirectory::write(const CheckpointData& data, const fs::path& into) const {
  const auto describe = [](const FileDigest& digest) {
    return json{{"bytes", digest.bytes}, {"xxh3_128", digest.xxh3_128}};
  };
  json manifest = {{"format", kFormat}, {"step", data.step}, {"files", json::object()}};
  json& files = manifest["files"];
  files[kModel] = describe(write_tensors(into / kModel, data.model, data.step));
  files[kOptimizer] = describe(write_tensors(into / kOptimizer, data.optimizer, data.step));
  files[kState] = describe(write_text(into / kState, with_finite_numbers(data.state).dump(1) + "\n"));
  manifest["checksum"] = checksum_of(manifest);
  write_text(into / kManifest, manifest.dump(1) + "\n");
  sync_directory(into);
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
    fs::remove_all(from);
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
  fs::remove_all(displaced);
}

CheckpointData CheckpointDirectory::load(const fs::path& path, CheckpointParts parts) {
  const fs::path checkpoint = without_trailing_slash(path);
  const json manifest = read_manifest(checkpoint);
  CheckpointData data;
  data.step = manifest["step"].get<std::int64_t>();
  check_content(manifest, checkpoint, kState);
  data.state = json::parse(read_text_file(checkpoint / kState, kMaxState), nullptr, /*allow_exceptions=*/false);
  if (data.state.is_discarded()) {
    throw DataError(fmt::format("checkpoint: {}: not JSON", (checkpoint / kState).string()));
  }
  check_content(manifest, checkpoint, kModel);
  data.model = read_tensors(checkpoint / kModel);
  if (parts == CheckpointParts::All) {
    check_content(manifest, checkpoint, kOptimizer);
    data.optimizer = read_tensors(checkpoint / kOptimizer);
  }
  return data;
}

void CheckpointDirectory::verify(const fs::path& path) {
  const fs::path checkpoint = without_trailing_slash(path);
  const json manifest = read_manifest(checkpoint);
  for (const char* name : kFiles) check_content(manifest, checkpoint, name);
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

std::optional<CheckpointData> CheckpointDirectory::load_latest(CheckpointReport* report, CheckpointParts parts) const {
  CheckpointReport unused;
  CheckpointReport& told = report == nullptr ? unused : *report;
  told = {};
  std::vector<fs::path> candidates = by_step();
  std::reverse(candidates.begin(), candidates.end());
  for (const fs::path& candidate : candidates) {
    try {
      CheckpointData data = load(candidate, parts);
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
  } catch (const DataError&) {  // then none of them is
  }
  std::vector<CheckpointInfo> infos;
  for (const fs::path& path : by_step()) {
    CheckpointInfo info;
    info.path = path;
    info.latest = path == latest;
    info.step = step_of_path(path).value_or(-1);
    try {
      const json manifest = read_manifest(path);
      info.step = manifest["step"].get<std::int64_t>();
      info.bytes = InputFile(path / kManifest).size();
      for (const char* name : kFiles) {
        check_size(manifest, path, name);
        info.bytes += manifest["files"][name]["bytes"].get<std::uint64_t>();
      }
    } catch (const Error& error) {
      info.problem = error.what();
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

bool CheckpointDirectory::is_valid(const fs::path& path) {
  if (known_valid_.contains(path)) return true;
  try {
    verify(path);
  } catch (const Error&) {
    return false;
  }
  known_valid_.insert(path);
  return true;
}

std::vector<fs::path> CheckpointDirectory::prune(const RetentionPolicy& policy) {
  require(policy.keep_last >= 1, "checkpoint: keep_last is {}, expected at least 1", policy.keep_last);
  require(policy.permanent_every >= 0, "checkpoint: permanent_every is {}, expected 0 or more", policy.permanent_every);
  remove_leftovers();
  const std::vector<fs::path> checkpoints = by_step();
  const auto keep = std::min(checkpoints.size(), static_cast<std::size_t>(policy.keep_last));
  fs::path latest;
  try {
    latest = latest_target();
  } catch (const DataError&) {  // damaged: nothing more to protect than the newest valid one
  }
  std::vector<fs::path> surplus;
  for (auto path = checkpoints.begin(); path != checkpoints.end() - static_cast<std::ptrdiff_t>(keep); ++path) {
    const auto step = step_of_path(*path);
    const bool permanent = policy.permanent_every > 0 && step && *step > 0 && *step % policy.permanent_every == 0;
    if (!permanent && *path != latest) surplus.push_back(*path);
  }
  if (surplus.empty()) return {};
  const auto newest_valid =
      std::find_if(checkpoints.rbegin(), checkpoints.rend(), [&](const fs::path& path) { return is_valid(path); });
  if (newest_valid != checkpoints.rend()) std::erase(surplus, *newest_valid);
  for (const fs::path& path : surplus) remove(path);
  return surplus;
}

std::vector<fs::path> CheckpointDirectory::discard_after(std::int64_t step) {
  std::vector<fs::path> discarded;
  for (const fs::path& path : by_step()) {
    if (step_of_path(path).value_or(-1) > step) discarded.push_back(path);
  }
  if (discarded.empty()) return discarded;
  const fs::path remaining = directory_ / name_of_step(step);
  if (fs::exists(remaining)) replace_text_file(directory_ / kLatest, remaining.filename().string() + "\n");
  for (const fs::path& path : discarded) remove(path);
  return discarded;
}

void CheckpointDirectory::remove(const fs::path& checkpoint) {
  known_valid_.erase(checkpoint);
  // Renamed first: half of a removed checkpoint must not look like one.
  const fs::path name = checkpoint.filename();
  const fs::path doomed = directory_ / fmt::format("{}remove-{}-{}", kTemporary, name.string(), ::getpid());
  std::error_code error;
  fs::rename(checkpoint, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) throw_system_error("checkpoint: cannot remove", checkpoint, error.value());
}

void CheckpointDirectory::remove_leftovers() const {
  std::vector<fs::path> leftovers;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kTemporary)) leftovers.push_back(entry.path());
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
