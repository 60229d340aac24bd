#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/context.h"
#include "engine/settings.h"
#include "engine/tensor.h"
#include "tasks/selection.h"
#include "tasks/statistics.h"

namespace graft {

/// What a step consumes, all on the device.
struct Batch {
  Tensor tokens;   // [B, T, stored input width] compute dtype; interleaved x, y; columns beyond the width are zero
  Tensor targets;  // [B, N, output width] stream dtype
  Tensor mask;     // [B, N] uint8, 1 = scored; empty: all are
  // Tasks on token ids, instead of `tokens`:
  Tensor ids;        // [B, T] int32
  Tensor positions;  // [B, N] int32, where in the sequence the N predictions are made, ascending; only these rows go
                     // through the model's head
  Tensor labels;     // [B, N] int32, the ids to predict; kIgnoredLabel where there is none
  std::int64_t output_columns = 0;  // of the model's outputs that count; 0: all. The step fills it in
};

/// What the model must provide for a task.
struct TaskShape {
  std::int64_t input_width = 0;   // n_x, floats a token
  std::int64_t output_width = 1;  // floats a prediction
  std::int64_t tokens_per_point = 2;
  std::int64_t max_tokens = 0;  // of the longest prompt
  std::int64_t vocabulary = 0;  // number of token ids; 0: vectors of input_width
  /// Widths of neighbouring column groups of a token that have a read-in each: its start has the group's fan-in. A
  /// token kind uses its group's columns, others are zero; the last column of a group is a constant 1, its bias, and
  /// the read-in has no bias of its own. Empty: one linear map with bias.
  std::vector<std::int64_t> read_in_groups = {};
};

/// One prompt on the host, for baselines and for `graft sample`.
struct Prompt {
  std::int64_t points = 0;
  std::int64_t dim = 0;
  std::vector<float> xs;     // [points, dim]
  std::vector<float> ys;     // [points]
  std::vector<float> truth;  // the function's parameters, e.g. the weights
  // Tasks where not every point counts, or not every y-token is (y, 0, ..., 0):
  std::vector<std::uint8_t> scored_points;  // [points], 1 = the point counts; empty: all do
  std::vector<float> y_vectors;             // [points, dim], the y-tokens; empty: each is (y, 0, ..., 0)
  // Tasks whose prediction at position i is made for another point than x_i, after the points 0 .. i-1 all the same:
  std::vector<float> queries;       // [points, dim]; empty: the xs
  std::vector<float> query_labels;  // [points]; empty: the ys
  // Tasks on token ids, instead of xs and ys:
  std::vector<std::int32_t> ids;     // the whole sequence, targets included
  std::vector<std::int32_t> scored;  // positions at which a scored prediction is made, of the id after them
  // Tasks whose tokens are other vectors than x and y, instead of xs and ys, with `scored` and `targets` of one length:
  std::vector<std::vector<float>> inputs;   // [T], each as wide as its kind of token
  std::vector<std::vector<float>> targets;  // what is predicted at the positions `scored`
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
  /// Training steps that read a fixed training set once; 0: there is none, every step draws new examples.
  [[nodiscard]] virtual std::int64_t steps_per_epoch() const { return 0; }
  /// Examples that the first `steps` training steps of `batch` places read; fewer than the places where a fixed set
  /// ends with a short step.
  [[nodiscard]] virtual std::int64_t examples_until(std::int64_t steps, std::int64_t batch) const {
    return steps * batch;
  }
  /// Tokens of a sequence with `points` points.
  [[nodiscard]] virtual std::int64_t tokens_at(std::int64_t points) const { return points * shape().tokens_per_point; }
  /// Points of evaluation prompts.
  [[nodiscard]] virtual std::int64_t final_points() const = 0;

  /// Draws a batch with `points` points on the device: reads seed and step from ctx.state.
  [[nodiscard]] virtual Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const = 0;
  /// The training loss from the model's outputs: one element, stream dtype. Outputs are [B, T, stored output width],
  /// and for token ids logits [B, N, stored vocabulary] at batch.positions.
  [[nodiscard]] virtual Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const = 0;
  /// The scores of an evaluation batch from the model's outputs: [B, N] stream dtype, kNotScored (ops/point_scores.h)
  /// where a point does not count. Squared errors, or 1 and 0 for right and wrong; never negative otherwise.
  [[nodiscard]] virtual Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const = 0;
  /// A model's outputs for a batch.
  using Model = std::function<Tensor(const Context&, const Batch&)>;
  /// The same for tasks whose evaluation runs the model more than once, or on other tokens than the batch's.
  [[nodiscard]] virtual Tensor evaluate(const Context& ctx, const Model& model, const Batch& batch) const {
    return scores(ctx, model(ctx, batch), batch);
  }

  /// Names of evaluations besides the standard one: other prompts, or scores at other places.
  [[nodiscard]] virtual std::vector<std::string> suites() const { return {}; }
  /// The task as the suite `name` evaluates it: sample(), evaluate(), prompt() and final_points() are the suite's.
  /// Throws ArgumentError for a name that suites() does not list.
  [[nodiscard]] virtual std::unique_ptr<Task> suite(std::string_view name) const;
  /// Sequences that an evaluation on `prompts` prompts reads: more than one a prompt where every position has a query
  /// of its own; they then follow each other, and each has its score at one position.
  [[nodiscard]] virtual std::int64_t sequences(std::int64_t prompts) const { return prompts; }

  /// Example `example` of step `step` of a domain, at full dimension and length, on the host.
  [[nodiscard]] virtual Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                                      std::uint32_t example) const = 0;
  /// Score of one scalar prediction of a baseline.
  [[nodiscard]] virtual double score(double prediction, double target) const {
    return (prediction - target) * (prediction - target);
  }
  /// "squared error", "accuracy".
  [[nodiscard]] virtual std::string_view score_name() const { return "squared error"; }
  /// Which number of an evaluation stands for it: while a run goes on, for its best checkpoint, in the table of a
  /// sweep.
  [[nodiscard]] virtual Headline headline() const { return Headline::MeanFromSecond; }
  /// Points that make up a prompt's answer, in tasks whose scores are 1 and 0: a prompt is answered where the scores at
  /// all of them are 1, and the share of prompts that are is the evaluation's accuracy. Empty: there is no such answer.
  [[nodiscard]] virtual std::vector<std::int64_t> answer_points() const { return {}; }
  /// Names of the baselines this task is compared with.
  [[nodiscard]] virtual std::vector<std::string> baselines() const { return {}; }
  /// A token id as people read it; for tasks on token ids.
  [[nodiscard]] virtual std::string token_name(std::int32_t id) const { return std::to_string(id); }
  /// What generated a prompt, for people: "w = 0.310 -1.200", "subset {2, 7}". One line or more, without a final
  /// newline. Unless a task says otherwise, truth are weights w.
  [[nodiscard]] virtual std::string truth_text(const Prompt& prompt) const;
  /// One line for people: "y = <w, x>, w ~ N(0, I_20)".
  [[nodiscard]] virtual std::string description() const = 0;
};

/// "v = 0.310 -1.200": numbers as truth_text() has them.
[[nodiscard]] std::string named_numbers(std::string_view name, std::span<const float> values);

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
