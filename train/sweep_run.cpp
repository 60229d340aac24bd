#include "train/sweep_run.h"

#include <fmt/format.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill is POSIX
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "engine/error.h"
#include "train/file_io.h"
#include "train/json_lines.h"
#include "train/run_record.h"
#include "train/signals.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kLargestRecord = 1U << 28U;
constexpr const char* kPlaceOption = "--runs-dir";

bool is_there(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return false;
  if (error) throw_system_error("cannot look at", path, error.value());
  return true;
}

/// The last whole line of a file of JSON objects; null if there is none. Throws if there is a file that cannot be read.
json last_line(const fs::path& path) {
  if (!is_there(path)) return nullptr;
  const InputFile file(path);
  for (std::uint64_t wanted = 1U << 16U;; wanted *= 8) {
    const std::uint64_t length = std::min(wanted, file.size());
    std::string tail(length, '\0');
    try {
      file.read(file.size() - length, std::as_writable_bytes(std::span(tail)));
    } catch (const DataError&) {  // shortened since it was opened, by a run that goes on from a checkpoint
      return nullptr;
    }
    tail.resize(tail.rfind('\n') + 1);  // a part of a line, being written
    if (!tail.empty()) {
      const std::size_t before = tail.find_last_of('\n', tail.size() - 2);
      if (before != std::string::npos || length == file.size()) {
        json line = parse_json(std::string_view(tail).substr(before + 1));
        return line.is_object() ? line : json(nullptr);
      }
    }
    if (length == file.size() || wanted >= kLargestRecord) return nullptr;
  }
}

std::vector<double> numbers_of(const json& array) {
  std::vector<double> values;
  for (const json& value : array) values.push_back(number_of(value));
  return values;
}

/// Whether what is looked at here has the types that a run writes.
bool is_record(const json& record) {
  return record.is_object() && record.value("config_hash", json()).is_string() &&
         record.value("host", json("")).is_string() && record.value("pid", json(0)).is_number_integer() &&
         record.value("message", json("")).is_string();
}

bool is_alive(const json& record) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || record.value("host", std::string()) != host.data()) {
    return true;  // on another machine; only its own system knows
  }
  const auto pid = record.value("pid", std::int64_t{0});
  return pid > 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

std::string last_line_of(const std::string& message) {
  std::string text = message;
  while (text.ends_with('\n')) text.pop_back();
  const std::size_t newline = text.rfind('\n');
  return newline == std::string::npos ? text : text.substr(newline + 1);
}

/// The standard library's own text for a refusal of the file system is nothing to show.
std::string text_of(const std::exception& error) {
  const auto* refusal = dynamic_cast<const fs::filesystem_error*>(&error);
  if (refusal == nullptr) return error.what();
  return fmt::format("cannot use {}: {}", refusal->path1().string(), refusal->code().message());
}

/// A stream that puts a prefix before every line and writes whole lines: several threads share what is behind it.
class PrefixedStream {
 public:
  PrefixedStream(std::FILE* out, std::mutex& lock, std::string prefix)
      : out_(out), lock_(lock), prefix_(std::move(prefix)) {
    cookie_io_functions_t functions{};
    functions.write = [](void* self, const char* text, std::size_t size) {
      static_cast<PrefixedStream*>(self)->write({text, size});
      return static_cast<ssize_t>(size);
    };
    file_ = ::fopencookie(this, "w", functions);
    if (file_ == nullptr) throw EnvironmentError("sweep: a stream for progress cannot be opened");
  }
  ~PrefixedStream() { std::fclose(file_); }
  PrefixedStream(const PrefixedStream&) = delete;
  PrefixedStream& operator=(const PrefixedStream&) = delete;

  [[nodiscard]] std::FILE* file() const { return file_; }
  void say(const std::string& line) {
    static_cast<void>(std::fputs((line + "\n").c_str(), file_));
    static_cast<void>(std::fflush(file_));
  }

 private:
  void write(std::string_view text) {
    pending_ += text;
    const std::size_t end = pending_.rfind('\n');
    if (end == std::string::npos) return;
    std::string lines;
    for (std::size_t begin = 0; begin <= end;) {
      const std::size_t next = pending_.find('\n', begin) + 1;
      lines += prefix_ + pending_.substr(begin, next - begin);
      begin = next;
    }
    pending_.erase(0, end + 1);
    const std::lock_guard guard(lock_);
    static_cast<void>(std::fputs(lines.c_str(), out_));  // nobody may be reading any more
    static_cast<void>(std::fflush(out_));
  }

  std::FILE* out_;
  std::mutex& lock_;
  std::string prefix_, pending_;
  std::FILE* file_ = nullptr;
};

/// What the threads of a sweep share.
struct Shared {
  const Sweep& sweep;
  const SweepOptions& options;
  std::vector<const SweepPoint*> points;  // to run
  int jobs = 1;                           // at once
  int threads_per_run = 1;
  std::mutex output{};
  std::mutex building{};  // see TrainerOptions
  std::atomic<std::size_t> next{0};
  std::vector<std::optional<SweepOutcome>> outcomes{};  // by point; each written by one thread
};

/// An experiment, its session and its trainer. Closing waits for the whole device: never while another thread captures.
struct LiveRun {
  explicit LiveRun(std::mutex* building) : building_(building) {}
  ~LiveRun() {
    const auto guard = lock();
    trainer.reset();
    session.reset();
    experiment.reset();  // its parameters are device memory too
  }
  LiveRun(const LiveRun&) = delete;
  LiveRun& operator=(const LiveRun&) = delete;
  [[nodiscard]] std::unique_lock<std::mutex> lock() const {
    return building_ == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(*building_);
  }
  std::unique_ptr<Experiment> experiment;
  std::unique_ptr<Session> session;
  std::unique_ptr<Trainer> trainer;

 private:
  std::mutex* building_;
};

TrainingOutcome train_point(Shared& shared, const SweepPoint& point, PrefixedStream& out) {
  const RunConfig config = shared.sweep.config(point);
  RunOptions options = run_options(config);
  options.place_option = kPlaceOption;
  options.directory = directory_of(shared.sweep, point, shared.options.root);
  RunDirectory::check(options);
  const MemoryReport memory = plan_memory_on_paper(config);
  const Device device = [&] {
    const std::lock_guard guard(shared.building);  // looks at the GPU
    return parse_device(shared.options.device, config.train.precision);
  }();
  std::mutex* const building = device.backend == Backend::Cuda ? &shared.building : nullptr;

  std::optional<RunDirectory> directory;
  try {
    LiveRun run(building);
    run.experiment = std::make_unique<Experiment>(config);
    {
      const auto guard = run.lock();
      run.session =
          open_training_session(*run.experiment, memory, device, RuntimeOptions{shared.threads_per_run}, shared.jobs);
    }
    options.info = run_info(config, *run.session);
    options.info["sweep"] = shared.sweep.name;
    directory.emplace(options);
    for (const std::string& warning : directory->warnings()) out.say("graft: warning: " + warning);

    const std::optional<CheckpointData> checkpoint =
        load_newest_own(CheckpointDirectory(directory->checkpoints()), *run.experiment,
                        [&](const std::string& text) { out.say(text); });
    {
      const auto guard = run.lock();
      run.trainer = std::make_unique<Trainer>(*run.session, *directory, out.file(),
                                              TrainerOptions{.guards_signals = false, .building = building});
      if (checkpoint) {
        run.trainer->resume(*checkpoint);
      } else {
        run.session->initialize();
      }
    }
    out.say(checkpoint ? fmt::format("continues after step {} of {}", checkpoint->step, config.train.steps)
                       : fmt::format("starts, {} steps", config.train.steps));
    const TrainingOutcome outcome = run.trainer->run();
    const ExitCode code = outcome.signal == 0 ? ExitCode::kDone : interrupted_code(outcome.signal);
    const std::string interruption = outcome.signal == 0
                                         ? std::string()
                                         : fmt::format("interrupted by {} after step {} of {}; saved",
                                                       signal_name(outcome.signal), outcome.step, config.train.steps);
    directory->finish(static_cast<int>(code), interruption);
    out.say(outcome.signal == 0
                ? fmt::format("done at step {}, parameters' hash {:016x}", outcome.step, outcome.parameter_hash)
                : interruption);
    return outcome;
  } catch (const std::exception& error) {
    if (directory) {
      const auto* known = dynamic_cast<const Error*>(&error);
      const ExitCode code = known == nullptr ? ExitCode::kEnvironment : known->exit_code();
      try {
        directory->finish(static_cast<int>(code), text_of(error));
      } catch (const Error& second) {  // a disk that refuses must not hide the error that ended the run
        out.say(fmt::format("graft: warning: run.json not written: {}", second.what()));
      }
    }
    throw;
  }
}

void work(Shared& shared) {
  for (;;) {
    const std::size_t index = shared.next.fetch_add(1);
    if (index >= shared.points.size() || SignalGuard::received() != 0) return;
    const SweepPoint& point = *shared.points[index];
    SweepOutcome outcome;
    outcome.point = &point;
    try {
      PrefixedStream out(shared.options.out, shared.output,
                         fmt::format("[{}/{} {}] ", index + 1, shared.points.size(), point.name));
      try {
        outcome.training = train_point(shared, point, out);
      } catch (const Error& error) {
        outcome.code = error.exit_code();
        outcome.error = error.what();
      } catch (const std::bad_alloc&) {
        outcome.code = ExitCode::kEnvironment;
        outcome.error = "out of host memory; use fewer --jobs, or a smaller batch or model";
      } catch (const std::exception& error) {
        outcome.code = ExitCode::kEnvironment;
        outcome.error = text_of(error);
      }
      if (!outcome.error.empty()) out.say("failed: " + last_line_of(outcome.error));
    } catch (const std::exception& error) {  // not even a stream for progress
      outcome.code = ExitCode::kEnvironment;
      outcome.error = error.what();
    }
    shared.outcomes[index] = std::move(outcome);
  }
}

/// status_of(), except that it throws for what cannot be looked at.
void look_at(const SweepPoint& point, const fs::path& directory, RunStatus& status) {
  if (!is_there(directory / "run.json")) {
    RunOptions options;
    options.directory = directory;
    options.place_option = kPlaceOption;
    options.config_hash = point.hash;
    RunDirectory::check(options);  // what else is there would keep it from ever starting
    return;
  }
  const json record = parse_json(read_text_file(directory / "run.json", kLargestRecord));
  if (!is_record(record)) throw DataError("run.json is damaged");
  if (record.at("config_hash") != point.hash) {
    status.state = RunState::OtherConfig;
    return;
  }
  std::string unreadable;
  const auto last_line_in = [&](const char* name) -> json {
    try {
      return last_line(directory / name);
    } catch (const Error& error) {
      if (unreadable.empty()) unreadable = error.what();
      return nullptr;
    }
  };
  bool decided = false;
  const json evaluation = last_line_in("eval.jsonl");
  const json metrics = last_line_in("metrics.jsonl");
  try {
    if (evaluation.is_object()) {
      status.evaluated = evaluation.at("step").get<std::int64_t>();
      status.step = *status.evaluated;
      const json& summary = evaluation.at("summary");
      status.mean = number_of(summary.at(summary.value("headline", "mean_from_second")));
      const std::vector<double> positions = numbers_of(evaluation.at("positions"));
      std::optional<double> accuracy;
      if (summary.contains("accuracy")) accuracy = number_of(summary.at("accuracy"));
      status.stop_value = point.stop.value(positions, accuracy);
      decided = point.stop.decided(positions, accuracy);
    }
    if (metrics.is_object()) {
      status.step = std::max(status.step, metrics.at("step").get<std::int64_t>());
      const double speed = number_of(metrics.at("steps_per_s"));
      if (speed > 0) status.seconds_left = static_cast<double>(point.steps - status.step) / speed;
    }
  } catch (const std::exception&) {  // a line that is no graft's; the run itself will say so
    status.evaluated.reset();
  }
  const json& exit_status = record.value("exit_status", json());
  if (!exit_status.is_number_integer() && is_alive(record)) {
    status.state = RunState::Running;
    status.message = last_line_of(unreadable);  // its own process has the files open
    return;
  }
  if (!unreadable.empty()) throw DataError(unreadable);
  if (!exit_status.is_number_integer()) {
    status.state = RunState::Unfinished;
    return;
  }
  const int code = exit_status.get<int>();
  const bool at_end = status.evaluated && (*status.evaluated >= point.steps || decided);
  if (code == static_cast<int>(ExitCode::kDone)) {
    status.state = at_end ? RunState::Done : RunState::Unfinished;
  } else if (is_interruption(static_cast<ExitCode>(code)) || code == static_cast<int>(ExitCode::kRequeue)) {
    status.state = RunState::Unfinished;
  } else {
    status.state = RunState::Failed;
    status.message = last_line_of(record.value("message", std::string()));
  }
}

}  // namespace

const char* name_of(RunState state) {
  switch (state) {
    case RunState::NotStarted:
      return "not started";
    case RunState::Running:
      return "running";
    case RunState::Unfinished:
      return "unfinished";
    case RunState::Failed:
      return "failed";
    case RunState::Done:
      return "done";
    case RunState::OtherConfig:
      return "other config";
  }
  return "?";
}

fs::path directory_of(const Sweep& sweep, const SweepPoint& point, const fs::path& root) {
  return root / sweep.name / point.name;
}

RunStatus status_of(const SweepPoint& point, const fs::path& directory) {
  RunStatus status;
  status.seconds_left = std::nan("");
  try {
    look_at(point, directory, status);
  } catch (const Error& error) {
    status.state = RunState::Failed;
    status.message = last_line_of(error.what());
  }
  return status;
}

SweepReport run_sweep(const Sweep& sweep, const SweepOptions& options) {
  Shared shared{sweep, options, {}};
  SweepReport report;
  for (const SweepPoint& point : sweep.points) {
    if (status_of(point, directory_of(sweep, point, options.root)).state == RunState::Done) {
      ++report.done_before;
    } else {
      shared.points.push_back(&point);
    }
  }
  shared.outcomes.resize(shared.points.size());
  const auto jobs = std::min<std::size_t>(static_cast<std::size_t>(std::max(options.jobs, 1)), shared.points.size());
  shared.jobs = static_cast<int>(jobs);
  const int cores = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  shared.threads_per_run = std::max(1, cores / std::max(static_cast<int>(jobs), 1));
  // Loads the backend, and with it the kernels' slots, before there are threads.
  if (options.device != "cpu") static_cast<void>(cuda_available());

  const SignalGuard signals;
  {
    std::vector<std::jthread> threads;
    try {
      for (std::size_t i = 1; i < jobs; ++i) threads.emplace_back([&shared] { work(shared); });
    } catch (const std::system_error&) {
      // The process limit: those that could be started share out the runs.
    }
    work(shared);
  }
  report.signal = SignalGuard::received();
  for (std::optional<SweepOutcome>& outcome : shared.outcomes) {
    if (outcome) report.outcomes.push_back(std::move(*outcome));
  }
  return report;
}

}  // namespace graft
