#include "tasks/baselines.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "engine/error.h"
#include "engine/host_blas.h"
#include "engine/require.h"
#include "engine/settings.h"

namespace graft {
namespace {

std::map<std::string, Baseline, std::less<>>& registry() {
  static std::map<std::string, Baseline, std::less<>> baselines;  // local, so that it exists before any registration
  return baselines;
}

void predict_zero(const PromptPoints&, std::span<double> predictions) {
  std::fill(predictions.begin(), predictions.end(), 0.0);
}

void predict_averaging(const PromptPoints& prompt, std::span<double> predictions) {
  std::vector<double> sum(static_cast<std::size_t>(prompt.dim));  // of x_j y_j
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    const auto x = prompt.xs.subspan(static_cast<std::size_t>(i * prompt.dim), sum.size());
    const double y = prompt.ys[static_cast<std::size_t>(i)];
    double prediction = 0;
    for (std::size_t j = 0; j < sum.size(); ++j) {
      prediction += sum[j] * x[j];
      sum[j] += double{x[j]} * y;
    }
    predictions[static_cast<std::size_t>(i)] = i == 0 ? 0.0 : prediction / static_cast<double>(i);
  }
}

void predict_nearest(const PromptPoints& prompt, std::span<double> predictions) {
  constexpr std::int64_t kNeighbours = 3;
  struct Neighbour {
    double distance;
    std::int64_t point;
  };
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    const float* x = &prompt.xs[static_cast<std::size_t>(i * prompt.dim)];
    Neighbour nearest[kNeighbours];  // nearest first
    std::int64_t found = 0;
    if (prompt.is_stopped()) return;
    for (std::int64_t j = 0; j < i; ++j) {
      const float* other = &prompt.xs[static_cast<std::size_t>(j * prompt.dim)];
      double distance = 0;
      for (std::int64_t k = 0; k < prompt.dim; ++k) {
        const double difference = double{x[k]} - double{other[k]};
        distance += difference * difference;
      }
      // Only what is strictly nearer moves ahead, so earlier points win ties.
      std::int64_t place = found;
      while (place > 0 && distance < nearest[place - 1].distance) --place;
      if (place == kNeighbours) continue;
      found = std::min(found + 1, kNeighbours);
      for (std::int64_t k = found - 1; k > place; --k) nearest[k] = nearest[k - 1];
      nearest[place] = {distance, j};
    }
    double sum = 0;
    for (std::int64_t k = 0; k < found; ++k) sum += prompt.ys[static_cast<std::size_t>(nearest[k].point)];
    predictions[static_cast<std::size_t>(i)] = found == 0 ? 0.0 : sum / static_cast<double>(found);
  }
}

void check_prompts(std::span<const float> xs, std::span<const float> ys, std::int64_t prompts, std::int64_t points,
                   std::int64_t dim) {
  require(prompts >= 0 && points >= 1 && dim >= 1, "baselines: {} prompts of {} points of {} dimensions", prompts,
          points, dim);
  require(xs.size() == static_cast<std::size_t>(prompts * points * dim), "baselines: {} inputs, expected {} x {} x {}",
          xs.size(), prompts, points, dim);
  require(ys.size() == static_cast<std::size_t>(prompts * points), "baselines: {} labels, expected {} x {}", ys.size(),
          prompts, points);
}

const RegisterBaseline zero{{"zero", predict_zero}};
const RegisterBaseline averaging{{"averaging", predict_averaging}};
const RegisterBaseline nearest_neighbours{{"knn3", predict_nearest}};

/// A name that no baseline has must not wait for the first evaluation.
void check_names(const Settings& settings, SettingMistakes& mistakes) {
  const std::vector<std::string>& names = settings.texts("eval.baselines");
  if (names.empty() || names == std::vector<std::string>{"all"}) return;
  if (settings.has("task.name") && has_tag("task", settings.text("task.name"), "tokens")) {
    mistakes.add({"eval.baselines"},
                 fmt::format("got \"{}\", expected \"all\" alone or none: no baseline reads the token ids of {}",
                             names.front(), settings.text("task.name")));
    return;
  }
  for (const std::string& name : names) {
    if (registry().contains(name)) continue;
    mistakes.add({"eval.baselines"}, fmt::format("got \"{}\", expected \"all\" alone or some of {}", name,
                                                 fmt::join(baseline_names(), ", ")));
  }
}

const RegisterSettings name_check{{.table = "eval", .owner = "", .doc = "baselines' names", .checks = {check_names}}};

}  // namespace

RegisterBaseline::RegisterBaseline(Baseline baseline) {
  const std::string name = baseline.name;
  require(registry().emplace(name, std::move(baseline)).second, "baselines: '{}' is registered twice", name);
}

const Baseline& find_baseline(std::string_view name) {
  const auto found = registry().find(name);
  require(found != registry().end(), "baselines: '{}', expected one of {}", name,
          fmt::format("{}", fmt::join(baseline_names(), ", ")));
  return found->second;
}

std::vector<std::string> baseline_names() {
  std::vector<std::string> names;
  for (const auto& [name, baseline] : registry()) names.push_back(name);
  return names;
}

std::vector<double> predict(const Baseline& baseline, std::span<const float> xs, std::span<const float> ys,
                            std::int64_t prompts, std::int64_t points, std::int64_t dim, int threads) {
  return predict(baseline, xs, ys, prompts, points, dim, PredictOptions{.threads = threads});
}

std::vector<double> predict(const Baseline& baseline, std::span<const float> xs, std::span<const float> ys,
                            std::int64_t prompts, std::int64_t points, std::int64_t dim,
                            const PredictOptions& options) {
  check_prompts(xs, ys, prompts, points, dim);
  require(options.scored.empty() || options.scored.size() == ys.size(),
          "baselines: {} marks of scored points, expected {} x {}", options.scored.size(), prompts, points);
  require(options.wanted.empty() || options.wanted.size() == static_cast<std::size_t>(points),
          "baselines: {} marks of wanted positions, expected {}", options.wanted.size(), points);
  std::vector<double> predictions(static_cast<std::size_t>(prompts * points));
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stopped{false};
  std::int64_t done = 0;
  std::mutex done_mutex;
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const std::function<bool()> stop = [&] {  // what one thread was told holds for all
    if (options.stop && !stopped && options.stop()) stopped = true;
    return stopped.load();
  };
  const auto work = [&] {
    const auto row = static_cast<std::size_t>(points);
    const auto inputs = static_cast<std::size_t>(points * dim);
    for (std::int64_t prompt = next++; prompt < prompts; prompt = next++) {
      const auto p = static_cast<std::size_t>(prompt);
      const std::span<double> answers = std::span(predictions).subspan(p * row, row);
      try {
        if (stop()) return;
        const PromptPoints prompt_points{xs.subspan(p * inputs, inputs),
                                         ys.subspan(p * row, row),
                                         points,
                                         dim,
                                         options.scored.empty() ? options.scored : options.scored.subspan(p * row, row),
                                         options.wanted,
                                         &stop};
        baseline.predict(prompt_points, answers);
        for (std::int64_t i = 0; i < points; ++i) {
          if (!prompt_points.is_wanted(i)) answers[static_cast<std::size_t>(i)] = std::nan("");
        }
        if (options.progress) {
          const std::lock_guard lock(done_mutex);
          options.progress(++done);
        }
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        if (!failure) failure = std::current_exception();
        next = prompts;
      }
    }
  };
  use_one_blas_thread();
  const std::int64_t wanted =
      options.threads > 0 ? options.threads : static_cast<std::int64_t>(std::thread::hardware_concurrency());
  {
    std::vector<std::jthread> workers;
    for (std::int64_t i = 1; i < std::min(wanted, prompts); ++i) workers.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  if (stopped) predictions.clear();
  return predictions;
}

std::vector<std::uint8_t> spread_positions(std::int64_t points, std::int64_t count) {
  require(points >= 1 && count >= 1, "baselines: {} of {} positions, expected at least 1 of 1", count, points);
  std::vector<std::uint8_t> wanted(static_cast<std::size_t>(points));
  const std::int64_t parts = std::max<std::int64_t>(std::min(count, points - 1), 1);
  for (std::int64_t k = 0; k <= parts; ++k) {
    wanted[static_cast<std::size_t>((2 * k * (points - 1) + parts) / (2 * parts))] = 1;
  }
  return wanted;
}

}  // namespace graft
