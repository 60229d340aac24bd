#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "train/checkpoint.h"
#include "train/checkpoint_lock.h"
#include "train/command.h"
#include "train/config.h"
#include "train/file_io.h"
#include "train/json_lines.h"
#include "train/progress.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

struct CkptArguments {
  std::string target, other;
  std::vector<std::string> targets;
  int keep = 0;                  // 0: as the run is configured
  std::int64_t keep_every = -1;  // -1: as the run is configured
  bool abandoned = false, dry_run = false, as_json = false, must_match = false;
};

bool is_checkpoint(const fs::path& path) { return fs::exists(path / "manifest.json"); }

/// The directory of checkpoints that a run's directory, or the directory itself, means.
fs::path directory_of(const std::string& text) {
  const fs::path path = tidy_path(text);
  if (fs::is_directory(path / "ckpt")) return path / "ckpt";
  if (is_checkpoint(path)) {
    throw DataError(fmt::format("ckpt: {} is one checkpoint, expected a run's directory or its ckpt folder", text));
  }
  if (fs::is_directory(path) && (path.filename() == "ckpt" || !CheckpointDirectory(path).list().empty())) return path;
  throw DataError(fmt::format("ckpt: {} is neither a run's directory with checkpoints nor such a ckpt folder", text));
}

/// A run's newest checkpoint, or the checkpoint itself.
fs::path checkpoint_of(const std::string& text) {
  const fs::path path = tidy_path(text);
  if (is_checkpoint(path) || !fs::is_directory(path)) return path;
  fs::path newest;
  for (const CheckpointInfo& info : CheckpointDirectory(directory_of(text)).list()) {
    if (info.usable()) newest = info.path;
  }
  if (newest.empty()) throw DataError(fmt::format("ckpt: {} holds no checkpoint that can be used", text));
  return newest;
}

/// Paths may hold bytes that JSON cannot.
std::string line_of(const ordered_json& object) {
  return with_finite_numbers(object).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string size_text(std::uint64_t bytes) { return bytes_text(static_cast<double>(bytes)); }

std::string saved_at(const fs::path& checkpoint) {
  struct stat status {};
  std::tm when{};
  if (::stat((checkpoint / "manifest.json").c_str(), &status) != 0 || ::localtime_r(&status.st_mtime, &when) == nullptr)
    return "?";
  char text[32] = "?";
  static_cast<void>(std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &when));
  return text;
}

std::string notes_on(const CheckpointInfo& info) {
  std::vector<std::string> notes;
  if (info.latest) notes.emplace_back("latest");
  if (info.best) notes.emplace_back("best");
  if (!info.nonfinite.empty()) notes.push_back("not finite, never continued from: " + info.nonfinite);
  if (!info.problem.empty()) notes.push_back("cannot be used: " + info.problem);
  return fmt::format("{}", fmt::join(notes, ", "));
}

int list(const CkptArguments& arguments) {
  const CheckpointDirectory directory(directory_of(arguments.target));
  const std::vector<CheckpointInfo> infos = directory.list();
  std::string text;
  if (arguments.as_json) {
    for (const CheckpointInfo& info : infos) {
      ordered_json line = {{"step", info.step},       {"path", info.path.string()}, {"bytes", info.bytes},
                           {"latest", info.latest},   {"best", info.best},          {"finite", info.nonfinite.empty()},
                           {"usable", info.usable()}, {"problem", info.problem}};
      line["score"] = info.score ? ordered_json(info.score->value) : ordered_json();
      text += line_of(line);
    }
    write_output(text);
    return static_cast<int>(ExitCode::kDone);
  }
  if (infos.empty()) text += fmt::format("no checkpoints in {}\n", directory.path().string());
  if (!infos.empty()) {
    text += fmt::format("{:>12}  {:>10}  {:<19}  {:>24}  {}\n", "step", "size", "saved", "score", "notes");
  }
  for (const CheckpointInfo& info : infos) {
    const std::string score = info.score ? fmt::format("{} {:.5g}", info.score->name, info.score->value) : "-";
    text += fmt::format("{:>12}  {:>10}  {:<19}  {:>24}  {}\n", info.step, size_text(info.bytes), saved_at(info.path),
                        score, notes_on(info));
  }
  for (const AbandonedCheckpoints& aside : directory.abandoned()) {
    text += fmt::format("{}: {} checkpoints of a branch that was left\n", aside.directory.filename().string(),
                        aside.checkpoints.size());
  }
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

/// Whether there is anything of a checkpoint that could be damaged.
bool may_be_checkpoint(const fs::path& path) {
  if (!fs::is_directory(path)) return false;
  return path.filename().string().starts_with("step_") || fs::exists(path / "manifest.json") ||
         fs::exists(path / "model.safetensors") || fs::exists(path / "optimizer.safetensors") ||
         fs::exists(path / "state.json");
}

int verify(const CkptArguments& arguments) {
  std::vector<fs::path> checkpoints;
  std::vector<std::string> missing;  // said at the end: the others are read all the same
  for (const std::string& target : arguments.targets) {
    const fs::path path = tidy_path(target);
    const fs::path folder = fs::is_directory(path / "ckpt") ? path / "ckpt" : path;
    std::vector<CheckpointInfo> infos;
    if (fs::is_directory(folder)) infos = CheckpointDirectory(folder).list();
    for (const CheckpointInfo& info : infos) checkpoints.push_back(info.path);
    if (!infos.empty()) continue;
    if (may_be_checkpoint(path)) {
      checkpoints.push_back(path);
    } else if (fs::is_directory(folder) && folder.filename() == "ckpt") {
      missing.push_back(fmt::format("{}: holds no checkpoint", target));
    } else {
      missing.push_back(fmt::format("{}: no such checkpoint, run or ckpt folder", target));
    }
  }
  std::vector<std::string> damaged, nonfinite;
  for (const fs::path& checkpoint : checkpoints) {
    std::string result;
    try {
      const std::string number = CheckpointDirectory::verify(checkpoint);
      if (number.empty()) {
        result = fmt::format("{}: good\n", checkpoint.string());
      } else {
        result = fmt::format("{}: INTACT BUT NOT FINITE, never continued from: {}\n", checkpoint.string(), number);
        nonfinite.push_back(checkpoint.string());
      }
    } catch (const Error& error) {
      if (!fs::exists(checkpoint)) {  // a run that trains clears up
        result = fmt::format("{}: removed meanwhile\n", checkpoint.string());
      } else {
        result = fmt::format("{}: DAMAGED: {}\n", checkpoint.string(), error.what());
        damaged.push_back(checkpoint.string());
      }
    }
    write_output(result);
  }
  if (damaged.empty() && !missing.empty()) {
    throw DataError(fmt::format("ckpt: {}", fmt::join(missing, "; ")));
  }
  if (damaged.empty() && nonfinite.empty()) return static_cast<int>(ExitCode::kDone);
  if (damaged.empty()) {
    throw NumericsError(
        fmt::format("ckpt: {} of {} checkpoints are intact but not finite: {}; `graft train` continues from the newest "
                    "finite one",
                    nonfinite.size(), checkpoints.size(), fmt::join(nonfinite, ", ")));
  }
  throw DataError(
      fmt::format("ckpt: {} of {} checkpoints cannot be used: {}; `graft train` continues from the newest good one{}",
                  damaged.size(), checkpoints.size(), fmt::join(damaged, ", "),
                  missing.empty() ? "" : fmt::format("; {}", fmt::join(missing, "; "))));
}

/// The lock of a run's directory, so that nothing is removed beneath a process that trains there. See RunDirectory.
class RunLock {
 public:
  explicit RunLock(const fs::path& run) {
    fd_ = ::open((run / ".lock").c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) return;  // not a run's directory any more: a copy of its checkpoints
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
    ::close(fd_);
    throw EnvironmentError(fmt::format("ckpt: {} is in use by another process; wait for it", run.string()));
  }
  ~RunLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

/// The run whose checkpoints these are, however the folder is reached; the directory above it if that is no run's.
fs::path run_of(const fs::path& checkpoints) {
  for (const fs::path& whole : {fs::absolute(checkpoints), fs::canonical(checkpoints)}) {
    if (fs::exists(whole.parent_path() / ".lock")) return whole.parent_path();
  }
  return fs::absolute(checkpoints).parent_path();
}

/// Without a run's lock nothing tells whether somebody is making the first save there but what is half written.
void check_nobody_writes(const fs::path& checkpoints, const fs::path& run) {
  if (fs::exists(run / ".lock")) return;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    if (!entry.path().filename().string().starts_with(".tmp-")) continue;
    throw EnvironmentError(fmt::format(
        "ckpt: {} may be a save under way, and {}, or remove what a killed process left there", entry.path().string(),
        fs::exists(run / "run.json")
            ? fmt::format("the .lock in {}, which would tell, is gone: let the run go on, which makes it again",
                          run.string())
            : "no run's directory is around it: give the run's directory"));
  }
}

int collect(const CkptArguments& arguments) {
  const fs::path path = directory_of(arguments.target);
  const fs::path run = run_of(path);
  RetentionPolicy policy;
  if (fs::exists(run / "resolved.toml")) {
    const RunConfig config = load_config((run / "resolved.toml").string(), {});
    policy = {static_cast<int>(config.checkpoint.keep), config.checkpoint.keep_every};
  }
  if (arguments.keep > 0) policy.keep_last = arguments.keep;
  if (arguments.keep_every >= 0) policy.permanent_every = arguments.keep_every;

  CheckpointDirectory directory(path);
  const char* verb = arguments.dry_run ? "would remove" : "removed";
  std::vector<fs::path> gone;
  if (arguments.dry_run) {
    gone = directory.surplus(policy);
  } else {
    const RunLock lock(run);
    CheckpointLock folder;  // a run may use it from elsewhere
    folder.require(path);
    check_nobody_writes(path, run);
    gone = directory.prune(policy);
    if (arguments.abandoned) {
      for (const AbandonedCheckpoints& aside : directory.abandoned()) {
        directory.remove(aside);
        gone.push_back(aside.directory);
      }
    }
  }
  std::string text;
  for (const AbandonedCheckpoints& aside : directory.abandoned()) {
    if (arguments.abandoned) {
      gone.push_back(aside.directory);
    } else {
      text += fmt::format("kept {} ({} checkpoints of a branch that was left; --abandoned removes it)\n",
                          aside.directory.string(), aside.checkpoints.size());
    }
  }
  for (const fs::path& each : gone) text += fmt::format("{} {}\n", verb, each.string());
  if (gone.empty()) {
    text += fmt::format("nothing to remove: keep {}, keep_every {}\n", policy.keep_last, policy.permanent_every);
  }
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

double element(const CheckpointTensor& tensor, std::size_t index) {
  if (tensor.dtype == DType::F64) {
    double value = 0;
    std::memcpy(&value, tensor.data.data() + 8 * index, 8);
    return value;
  }
  float value = 0;
  std::memcpy(&value, tensor.data.data() + 4 * index, 4);
  return static_cast<double>(value);
}

/// How two tensors of one name differ; empty if they are the same bits.
std::string difference(const CheckpointTensor& a, const CheckpointTensor& b, ordered_json& record) {
  if (a.dtype == b.dtype && a.shape == b.shape && a.data == b.data) return {};
  const auto of = [](const CheckpointTensor& tensor) {
    return fmt::format("{} {}", name_of(tensor.dtype), tensor.shape.str());
  };
  const auto numeric = [](DType dtype) { return dtype == DType::F32 || dtype == DType::F64; };
  if (!(a.shape == b.shape) || !numeric(a.dtype) || !numeric(b.dtype)) {
    record["a"] = of(a);
    record["b"] = of(b);
    return fmt::format("{} | {}", of(a), of(b));
  }
  const auto count = static_cast<std::size_t>(a.shape.elements());
  std::size_t differing = 0;
  double most = 0, squares = 0, norm = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = element(a, i), y = element(b, i);
    norm += x * x;
    if (x == y) continue;
    ++differing;
    most = std::isnan(x - y) ? x - y : std::max(most, std::abs(x - y));
    squares += (x - y) * (x - y);
  }
  record["elements"] = count;
  record["differing"] = differing;
  record["largest"] = most;
  record["relative"] = norm > 0 ? std::sqrt(squares / norm) : std::sqrt(squares);
  return fmt::format("{} of {} elements differ, largest {:.3g}, relative norm {:.3g}{}", differing, count, most,
                     record["relative"].get<double>(),
                     a.dtype == b.dtype ? "" : fmt::format(" ({} | {})", name_of(a.dtype), name_of(b.dtype)));
}

int compare(const CkptArguments& arguments) {
  const fs::path path_a = checkpoint_of(arguments.target), path_b = checkpoint_of(arguments.other);
  const CheckpointData a = CheckpointDirectory::load(path_a), b = CheckpointDirectory::load(path_b);
  ordered_json report = {{"a", path_a.string()}, {"b", path_b.string()}, {"identical", true}};
  std::vector<std::string> lines;
  std::size_t tensors = 0, differing = 0;
  const auto note = [&](const char* part, const std::string& name, const std::string& text, ordered_json record) {
    lines.push_back(fmt::format("{:<10} {:<40} {}", part, name, text));
    record["part"] = part;
    record["name"] = name;
    report["tensors"].push_back(std::move(record));
    ++differing;
  };
  for (const bool optimizer : {false, true}) {
    const char* part = optimizer ? "optimizer" : "model";
    const auto& of_a = optimizer ? a.optimizer : a.model;
    std::map<std::string_view, const CheckpointTensor*> rest;
    for (const CheckpointTensor& tensor : optimizer ? b.optimizer : b.model) rest[tensor.name] = &tensor;
    for (const CheckpointTensor& tensor : of_a) {
      ++tensors;
      const auto found = rest.find(tensor.name);
      if (found == rest.end()) {
        note(part, tensor.name, "only in the first", {{"only_in", "a"}});
        continue;
      }
      ordered_json record;
      if (const std::string text = difference(tensor, *found->second, record); !text.empty()) {
        note(part, tensor.name, text, std::move(record));
      }
      rest.erase(found);
    }
    for (const auto& [name, tensor] : rest) {
      ++tensors;
      note(part, std::string(name), "only in the second", {{"only_in", "b"}});
    }
  }
  std::vector<std::string> keys;
  for (const json& change : json::diff(a.state, b.state)) keys.push_back(change.at("path").get<std::string>());
  const bool same = differing == 0 && a.step == b.step;
  report["identical"] = same;
  report["steps"] = {a.step, b.step};
  report["state"] = keys;
  if (arguments.as_json) {
    write_output(line_of(report));
  } else {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    if (a.step != b.step) text += fmt::format("steps {} and {}\n", a.step, b.step);
    if (!keys.empty()) text += fmt::format("state.json differs at {}\n", fmt::join(keys, " "));
    text += fmt::format("{} of {} tensors differ{}\n", differing, tensors, differing == 0 ? ": the same bits" : "");
    write_output(text);
  }
  if (arguments.must_match && !same) {
    throw DataError(fmt::format("ckpt: {} and {} are not the same", path_a.string(), path_b.string()));
  }
  return static_cast<int>(ExitCode::kDone);
}

CLI::App* add_action(CLI::App& parent, const std::string& name, const std::string& what, const std::string& example,
                     const std::shared_ptr<CkptArguments>& arguments, int (*run)(const CkptArguments&),
                     std::function<int()>& action) {
  CLI::App* command = parent.add_subcommand(name, what);
  command->footer("Example:  " + example);
  command->callback([arguments, run, &action] { action = [arguments, run] { return run(*arguments); }; });
  return command;
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<CkptArguments>();
  CLI::App* ckpt = app.add_subcommand("ckpt", "list, check, clear up and compare checkpoints");
  ckpt->require_subcommand(1);
  ckpt->footer(
      "Examples:  graft ckpt ls runs/quickstart-0123abcd\n"
      "           graft ckpt verify runs/quickstart-0123abcd/ckpt/step_5000\n"
      "Exit codes: 0 done, 2 usage, 3 the file system refuses or the run is in use, 4 a checkpoint is damaged,\n"
      "            5 verify: none is damaged, and one holds numbers that are not finite");

  CLI::App* ls = add_action(*ckpt, "ls", "one line a checkpoint: step, size, time, score, what is wrong with it",
                            "graft ckpt ls runs/quickstart-0123abcd", arguments, list, action);
  require_not_empty(ls->add_option("run", arguments->target, "a run's directory, or its ckpt folder"))
      ->type_name("DIR")
      ->required();
  ls->add_flag("--json", arguments->as_json, "one JSON object a checkpoint (default: off)");

  CLI::App* check =
      add_action(*ckpt, "verify",
                 "read every byte and compare sizes and checksums; exit 4 if one is wrong, 5 if numbers are not finite",
                 "graft ckpt verify runs/*", arguments, verify, action);
  require_not_empty(
      check->add_option("paths", arguments->targets, "runs' directories, ckpt folders or single checkpoints"))
      ->type_name("PATH")
      ->required();

  CLI::App* gc = add_action(*ckpt, "gc",
                            "remove old checkpoints and what killed processes left; never the newest good one, the "
                            "best one or `latest`",
                            "graft ckpt gc runs/quickstart-0123abcd --keep 1 --dry-run", arguments, collect, action);
  constexpr int kMost = 1'000'000;
  require_not_empty(gc->add_option("run", arguments->target, "a run's directory, or its ckpt folder"))
      ->type_name("DIR")
      ->required();
  gc->add_option("--keep", arguments->keep, "newest ones that stay (default: the run's checkpoint.keep)")
      ->type_name("N")
      ->check(CLI::Range(1, kMost));
  gc->add_option("--keep-every", arguments->keep_every,
                 "steps that N divides stay; 0: none (default: the run's checkpoint.keep_every)")
      ->type_name("N")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 62U));
  gc->add_flag("--abandoned", arguments->abandoned, "also remove branches that a --resume PATH left (default: off)");
  gc->add_flag("--dry-run", arguments->dry_run, "only say what would go (default: off)");

  CLI::App* diff = add_action(*ckpt, "diff", "which tensors of two checkpoints differ, and by how much",
                              "graft ckpt diff runs/a-0123abcd/ckpt/step_100 runs/b-4567cdef/ckpt/step_100", arguments,
                              compare, action);
  require_not_empty(diff->add_option("first", arguments->target, "a checkpoint, or a run's directory: its newest"))
      ->type_name("PATH")
      ->required();
  require_not_empty(diff->add_option("second", arguments->other, "the same"))->type_name("PATH")->required();
  diff->add_flag("--json", arguments->as_json, "one JSON object (default: off)");
  diff->add_flag("--same", arguments->must_match,
                 "exit 4 unless steps and all tensors are the same bits (default: off)");
}

const RegisterCommand registered{{"ckpt", add}};

}  // namespace
}  // namespace graft
