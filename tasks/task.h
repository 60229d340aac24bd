#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/context.h"
#include "engine/settings.h"
#include "engine/tensor.h"
#include "tasks/selection.h"

namespace graft {

/// What a step consumes, all on the device.
struct Batch {
  Tensor tokens;   // [B, T, stored input width] compute dtype; interleaved x, y; columns beyond the width are zero
  Tensor targets;  // [B, N, output width] stream dtype
  Tensor mask;     // [B, N] uint8, 1 = scored; empty: all are
  Tensor ids;      // [B, T] int32 token ids, for tasks on tokens
};

/// What the model must provide for a task.
struct TaskShape {
  std::int64_t input_width = 0;   // n_x, floats a token
  std::int64_t output_width = 1;  // floats a prediction
  std::int64_t tokens_per_point = 2;
  std::int64_t max_tokens = 0;  // of the longest prompt
};

/// One prompt on the host, for baselines and for `graft sample`.
struct Prompt {
  std::int64_t points = 0;
  std::int64_t dim = 0;
  std::vector<float> xs;     // [points, dim]
  std::vector<float> ys;     // [points]
  std::vector<float> truth;  // the function's parameters, e.g. the weights
};

/// A task of a study: what is sampled, what is predicted, how it is scored. A task is new files; nothing lists all
/// tasks. Constructed from the settings of its table.
class Task {
 public:
  virtual ~Task() = default;

  [[nodiscard]] virtual TaskShape shape() const = 0;
  /// In-context points at training step `step`; a new number is a new graph.
  [[nodiscard]] virtual std::int64_t points_at(std::uint64_t step) const = 0;
  /// Active input dimensions at `step`; masking happens on the device.
  [[nodiscard]] virtual std::int64_t dims_at(std::uint64_t step) const = 0;
  /// Points of evaluation prompts.
  [[nodiscard]] virtual std::int64_t final_points() const = 0;

  /// Draws a batch with `points` points on the device: reads seed and step from ctx.state.
  [[nodiscard]] virtual Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const = 0;
  /// The training loss from the model's outputs [B, T, stored output width]: one element, stream dtype.
  [[nodiscard]] virtual Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const = 0;
  /// Copies what is predicted out of the model's outputs: [B, N] stream dtype.
  [[nodiscard]] virtual Tensor predictions(const Context& ctx, const Tensor& outputs, std::int64_t points) const = 0;

  /// Example `example` of step `step` of a domain, at full dimension and length, on the host.
  [[nodiscard]] virtual Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                                      std::uint32_t example) const = 0;
  /// Score of one prediction, lower is better unless score_name says otherwise.
  [[nodiscard]] virtual double score(double prediction, double target) const = 0;
  [[nodiscard]] virtual std::string_view score_name() const = 0;
  /// Names of the baselines this task is compared with.
  [[nodiscard]] virtual std::vector<std::string> baselines() const = 0;
  /// One line for people: "y = <w, x>, w ~ N(0, I_20)".
  [[nodiscard]] virtual std::string description() const = 0;
};

/// A task by name: what a configuration's task.name can say.
struct TaskEntry {
  std::string name;
  std::function<std::unique_ptr<Task>(const Settings&)> make;
};

/// Registers a task (and its keys, as a SettingGroup of its own) when its file is loaded.
struct RegisterTask {
  explicit RegisterTask(TaskEntry entry);
};

/// Makes the task that settings' task.name asks for. Throws ArgumentError on an unknown name.
[[nodiscard]] std::unique_ptr<Task> make_task(const Settings& settings);
[[nodiscard]] std::vector<std::string> task_names();

}  // namespace graft
