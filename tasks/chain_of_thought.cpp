#include "tasks/chain_of_thought.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/require.h"
#include "ops/add.h"
#include "ops/point_scores.h"
#include "ops/rows_cpu.h"
#include "ops/squared_error.h"
#include "tasks/curriculum_settings.h"
#include "tasks/prompt_sampler.h"
#include "tasks/task.h"

namespace graft {
namespace {

constexpr std::int64_t kTokensPerPoint = 3;
/// Points whose fed-back sequences are read together: enough to fill a GPU, and their padding is a few percent.
constexpr std::int64_t kPointsPerPass = 8;

/// One prompt on the host.
struct Chain {
  Chain(const ChainOfThought& law, const Draw& draw, std::int64_t points, int active)
      : parameters(static_cast<std::size_t>(law.parameters())),
        stored_dim(law.stored_dim()),
        hidden(law.hidden),
        xs(static_cast<std::size_t>(points * stored_dim)),
        hiddens(static_cast<std::size_t>(points * hidden)),
        ys(static_cast<std::size_t>(points)) {
    for (int j = 0; j < law.parameters(); ++j) parameters[static_cast<std::size_t>(j)] = law.parameter(draw, j);
    for (std::int64_t i = 0; i < points; ++i) {
      float* x = &xs[static_cast<std::size_t>(i * stored_dim)];
      for (int block = 0; 4 * block < stored_dim; ++block) {
        law.inputs4(draw, static_cast<int>(i), block, active, x + 4 * block);
      }
      float* s = &hiddens[static_cast<std::size_t>(i * hidden)];
      for (int unit = 0; unit < hidden; ++unit) s[unit] = law.hidden_value(parameters.data(), x, unit);
      ys[static_cast<std::size_t>(i)] = law.label(parameters.data(), s);
    }
  }
  [[nodiscard]] const float* x(std::int64_t i) const { return &xs[static_cast<std::size_t>(i * stored_dim)]; }
  [[nodiscard]] const float* s(std::int64_t i) const { return &hiddens[static_cast<std::size_t>(i * hidden)]; }
  [[nodiscard]] float y(std::int64_t i) const { return ys[static_cast<std::size_t>(i)]; }

  std::vector<float> parameters;
  std::int64_t stored_dim, hidden;
  std::vector<float> xs, hiddens, ys;
};

template <class T, class S>
void sample(Stream& stream, const SampleChains& args) {
  const ChainOfThought& law = args.law;
  const StepState& state = *args.state;
  const int active = active_dims(args.selection, args.dims, state, law.dim);
  const std::int64_t width = args.tokens.shape.columns();
  const int outputs = law.hidden + 1;
  parallel_for(stream, args.selection.batch, 4, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      const Chain chain(law, draw_of(args.selection, state, b), args.points, active);
      for (std::int64_t i = 0; i < args.points; ++i) {
        const std::int64_t point = b * args.points + i;
        T* const tokens = args.tokens.as<T>() + kTokensPerPoint * point * width;
        for (int kind = 0; kind < kTokensPerPoint; ++kind) {
          for (int c = 0; c < width; ++c) {
            tokens[kind * width + c] = static_cast<T>(law.column(kind, c, chain.x(i), chain.s(i), chain.y(i)));
          }
        }
        S* const targets = args.targets.as<S>() + point * outputs;
        for (int k = 0; k < law.hidden; ++k) targets[k] = static_cast<S>(chain.s(i)[k]);
        targets[law.hidden] = static_cast<S>(chain.y(i));
      }
    }
  });
}

void sample_cpu(Stream& stream, const SampleChains& args) {
  switch (args.tokens.dtype) {
    case DType::F64:
      return sample<double, double>(stream, args);
    case DType::BF16:
      return sample<bfloat16, float>(stream, args);
    default:
      return sample<float, float>(stream, args);
  }
}

void feed_back_cpu(Stream& stream, const FeedBack& args) {
  const std::size_t element = size_of(args.tokens.dtype);
  const std::int64_t tokens = args.tokens.shape[1];
  const std::int64_t length = args.fed.shape[1];
  const std::size_t row = static_cast<std::size_t>(args.tokens.shape.columns()) * element;
  const std::size_t output_row = static_cast<std::size_t>(args.outputs.shape.columns()) * element;
  const auto* const from = args.tokens.as<std::byte>();
  const auto* const said = args.outputs.as<std::byte>();
  auto* const to = args.fed.as<std::byte>();
  parallel_for(stream, args.fed.shape[0], 4, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t sequence = first; sequence < last; ++sequence) {
      const std::int64_t prompt = sequence / args.count;
      const auto x_token = static_cast<std::size_t>(kTokensPerPoint * (args.first + sequence % args.count));
      std::byte* const fed = to + static_cast<std::size_t>(sequence * length) * row;
      std::memcpy(fed, from + static_cast<std::size_t>(prompt * tokens) * row, static_cast<std::size_t>(length) * row);
      std::memcpy(fed + (x_token + 1) * row + static_cast<std::size_t>(args.law.hidden_column()) * element,
                  said + (static_cast<std::size_t>(prompt * tokens) + x_token) * output_row,
                  static_cast<std::size_t>(args.law.hidden) * element);
    }
  });
}

void collect_labels_cpu(Stream& stream, const CollectLabels& args) {
  const std::int64_t points = args.predictions.shape[1];
  parallel_for(stream, args.outputs.shape[0], 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t sequence = first; sequence < last; ++sequence) {
      const std::int64_t point = args.first + sequence % args.count;
      const std::int64_t token = sequence * args.outputs.shape[1] + kTokensPerPoint * point + 1;
      const auto label = load_element<double>(args.outputs, token * args.outputs.shape.columns() + args.law.hidden);
      store_row(args.predictions, sequence / args.count * points + point, 1, &label);
    }
  });
}

class ChainOfThoughtTask final : public Task {
 public:
  ChainOfThoughtTask(ChainOfThought law, Curriculum curriculum, std::int64_t final_points, bool teacher_forced)
      : law_(law), curriculum_(curriculum), final_points_(final_points), teacher_forced_(teacher_forced) {}

  [[nodiscard]] TaskShape shape() const override {
    TaskShape shape;
    shape.input_width = law_.width();
    shape.output_width = law_.hidden + 1;
    shape.tokens_per_point = kTokensPerPoint;
    shape.max_tokens = kTokensPerPoint * final_points_;
    shape.read_in_groups = {law_.dim + 1, law_.hidden + 1, 2};
    return shape;
  }
  [[nodiscard]] std::int64_t points_at(std::uint64_t step) const override { return curriculum_.points.at(step); }
  [[nodiscard]] std::int64_t dims_at(std::uint64_t step) const override { return curriculum_.dims.at(step); }
  [[nodiscard]] std::int64_t final_points() const override { return final_points_; }

  [[nodiscard]] Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const override {
    require(ctx.state != nullptr, "sample: the context has no step state");
    require(points >= 1 && points <= final_points_, "sample: {} points, expected 1..{}", points, final_points_);
    Batch batch;
    batch.tokens = ctx.empty({selection.batch, kTokensPerPoint * points, round_up(law_.width(), 8)},
                             ctx.compute_dtype(), "prompt tokens");
    batch.targets = ctx.empty({selection.batch, points, law_.hidden + 1}, ctx.stream_dtype(), "prompt targets");
    sample_chains(ctx, {law_, curriculum_.dims, selection, ctx.state, points, batch.tokens.mutable_view(),
                        batch.targets.mutable_view()});
    return batch;
  }

  /// mean |s-hat_i - s_i|^2 + mean (y-hat_i - y_i)^2.
  [[nodiscard]] Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    const Tensor hidden = squared_error(
        ctx, outputs, batch.targets, {},
        {.columns = law_.hidden, .position_stride = kTokensPerPoint, .position_offset = 0, .sum_columns = true});
    return add(ctx, hidden, squared_error(ctx, outputs, batch.targets, {}, label_options()));
  }
  /// (y-hat_i - y_i)^2, the true s_i before it.
  [[nodiscard]] Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return point_scores(ctx, ScoreKind::SquaredError, outputs, batch.targets, {}, label_options());
  }

  /// (y-hat_i - y_i)^2, the model's own s-hat_i before it and true points before that. One pass over the true prompts
  /// gives every s-hat_i; then a sequence for each point holds s-hat_i in the place of s_i, and ends there. Sequences
  /// of neighbouring points are read together, as long as the longest of them: what a causal model reads after s-hat_i
  /// does not change its answer. In all that is about N / 2 passes over the prompts.
  [[nodiscard]] Tensor evaluate(const Context& ctx, const Model& model, const Batch& batch) const override {
    const Tensor outputs = model(ctx, batch);
    if (teacher_forced_) return scores(ctx, outputs, batch);
    require(outputs.dtype() == batch.tokens.dtype(), "evaluate: outputs are {}, expected {} like the tokens",
            name_of(outputs.dtype()), name_of(batch.tokens.dtype()));
    const std::int64_t prompts = batch.tokens.shape()[0];
    const std::int64_t points = batch.targets.shape()[1];
    const Tensor predictions = ctx.empty({prompts, points, 1}, ctx.stream_dtype(), "predicted labels");
    for (std::int64_t first = 0; first < points; first += kPointsPerPass) {
      const std::int64_t count = std::min(kPointsPerPass, points - first);
      const std::int64_t length = kTokensPerPoint * (first + count - 1) + 2;
      Batch fed;
      fed.tokens =
          ctx.empty({prompts * count, length, batch.tokens.shape()[2]}, batch.tokens.dtype(), "fed-back tokens");
      fed.output_columns = batch.output_columns;
      feed_back(ctx, {law_, first, count, batch.tokens.view(), outputs.view(), fed.tokens.mutable_view()});
      const Tensor fed_outputs = model(ctx, fed);
      collect_labels(ctx, {law_, first, count, fed_outputs.view(), predictions.mutable_view()});
    }
    return point_scores(ctx, ScoreKind::SquaredError, predictions, batch.targets, {},
                        {.columns = 1, .target_column = law_.hidden});
  }

  [[nodiscard]] std::vector<std::string> suites() const override { return {"teacher_forced"}; }
  [[nodiscard]] std::unique_ptr<Task> suite(std::string_view name) const override {
    if (name != "teacher_forced") return Task::suite(name);
    return std::make_unique<ChainOfThoughtTask>(law_, curriculum_, final_points_, true);
  }

  /// inputs: x, s, y, x, ...; scored and targets: s at x-tokens and y at s-tokens; truth: W, then v.
  [[nodiscard]] Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                              std::uint32_t example) const override {
    const Chain chain(law_, Draw{seed, domain, step, example}, final_points_, law_.dim);
    Prompt prompt;
    prompt.dim = law_.dim;
    prompt.truth = chain.parameters;
    for (std::int64_t i = 0; i < final_points_; ++i) {
      const std::vector<float> s(chain.s(i), chain.s(i) + law_.hidden);
      prompt.inputs.emplace_back(chain.x(i), chain.x(i) + law_.dim);
      prompt.inputs.push_back(s);
      prompt.inputs.push_back({chain.y(i)});
      prompt.scored.push_back(static_cast<std::int32_t>(kTokensPerPoint * i));
      prompt.targets.push_back(s);
      prompt.scored.push_back(static_cast<std::int32_t>(kTokensPerPoint * i + 1));
      prompt.targets.push_back({chain.y(i)});
    }
    return prompt;
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    return fmt::format("W [{}, {}] (--json prints it), {}", law_.hidden, law_.dim,
                       named_numbers("v", std::span(prompt.truth).last(static_cast<std::size_t>(law_.hidden))));
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format(
        "chain of thought: s = relu(W x), y = <v, s>, x ~ N(0, I_{}), {} hidden units, {} points of x, s, y", law_.dim,
        law_.hidden, final_points_);
  }

 private:
  [[nodiscard]] SquaredErrorOptions label_options() const {
    return {.columns = 1,
            .position_stride = kTokensPerPoint,
            .position_offset = 1,
            .first_column = law_.hidden,
            .target_column = law_.hidden};
  }
  ChainOfThought law_;
  Curriculum curriculum_;
  std::int64_t final_points_;
  bool teacher_forced_;
};

/// The curriculum's keys; the study leaves dimensions alone, so theirs starts where it ends.
std::vector<SettingKey> keys_of_task() {
  std::vector<SettingKey> keys = with_curriculum(
      {
          SettingKey::integer("task.dim", "dimension of an input").with_default(10).between(1, ChainOfThought::kMost),
          SettingKey::integer("task.hidden", "hidden units of the network, all shown in the prompt")
              .with_default(8)
              .between(1, ChainOfThought::kMost)
              .elsewhere_called({"hidden_dim", "n_hidden", "width"}),
          SettingKey::integer("task.points", "points of a prompt, the last one a query")
              .with_default(101)
              .between(1, 8192),
          SettingKey::texts("eval.baselines", "baselines to compare with: this task has none")
              .with_defaults({"all"})
              .one_of({"all"}),
      },
      {.dims_increment = 0, .points_start = 26, .points_increment = 5});
  for (SettingKey& key : keys) {
    if (key.path == "task.curriculum.dims_start") key.fallback_path = "task.dim";
    if (key.path == "task.curriculum.dims_start") key.fallback = {};
  }
  return keys;
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "chain_of_thought",
    .doc = "y = <v, s>, s = relu(W x), with s shown between x and y",
    .keys = keys_of_task(),
    .checks = {check_curriculum},
}};

const RegisterTask registered{{"chain_of_thought", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 const ChainOfThought law{static_cast<int>(settings.integer("task.dim")),
                                                          static_cast<int>(settings.integer("task.hidden"))};
                                 return std::make_unique<ChainOfThoughtTask>(law, curriculum_of(settings),
                                                                             settings.integer("task.points"), false);
                               }}};

const Register cpu_sampler{sample_chains, Backend::Cpu, sample_cpu};
const Register cpu_feed{feed_back, Backend::Cpu, feed_back_cpu};
const Register cpu_labels{collect_labels, Backend::Cpu, collect_labels_cpu};

}  // namespace
}  // namespace graft
