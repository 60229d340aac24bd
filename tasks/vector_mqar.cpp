#include "tasks/vector_mqar.h"

#include <fmt/format.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/require.h"
#include "ops/point_scores.h"
#include "ops/squared_error.h"
#include "tasks/task.h"

namespace graft {
namespace {

/// Room for one example's choice of queries on the host.
struct Choice {
  explicit Choice(const VectorRetrieval& law)
      : order(static_cast<std::size_t>(law.scratch_doubles())),
        asked(static_cast<std::size_t>(law.scratch_integers())) {}
  const std::int32_t* make(const VectorRetrieval& law, const Draw& draw) {
    law.choose(Threads{}, draw, {order.data(), asked.data()});
    return asked.data();
  }
  std::vector<double> order;
  std::vector<std::int32_t> asked;
};

template <class T, class S>
void sample(Stream& stream, const SampleVectors& args) {
  const VectorRetrieval& law = args.law;
  const StepState& state = *args.state;
  const std::int64_t width = args.tokens.shape.columns();
  parallel_for(stream, args.selection.batch, 8, [&](std::int64_t first, std::int64_t last) {
    Choice choice(law);
    for (std::int64_t at = first; at < last; ++at) {
      const VectorExample example = vector_example(args.order, args.selection, state, at);
      const std::int32_t* asked = choice.make(law, example.draw);
      T* const tokens = args.tokens.as<T>() + at * law.tokens() * width;
      S* const targets = args.targets.as<S>() + at * law.points() * law.dim;
      law.write(
          Threads{}, example.draw, asked,
          [&](int t, int j, float value) {
            tokens[t * width + j] = static_cast<T>(value);
            if (j != law.dim - 1) return;
            for (std::int64_t pad = law.dim; pad < width; ++pad) tokens[t * width + pad] = static_cast<T>(0.F);
          },
          [&](int i, int j, float value) { targets[i * law.dim + j] = static_cast<S>(value); });
      for (int i = 0; args.mask && i < law.points(); ++i) {
        args.mask.as<std::uint8_t>()[at * law.points() + i] = !example.missing && asked[i] >= 0 ? 1 : 0;
      }
    }
  });
}

void sample_cpu(Stream& stream, const SampleVectors& args) {
  switch (args.tokens.dtype) {
    case DType::F64:
      return sample<double, double>(stream, args);
    case DType::BF16:
      return sample<bfloat16, float>(stream, args);
    default:
      return sample<float, float>(stream, args);
  }
}

/// Both retrieval tasks. `squared_norm`: errors are sums over coordinates, else means.
class VectorRetrievalTask final : public Task {
 public:
  VectorRetrievalTask(VectorRetrieval law, EpochOrder order, bool squared_norm, std::string description)
      : law_(law), order_(order), squared_norm_(squared_norm), description_(std::move(description)) {}

  [[nodiscard]] TaskShape shape() const override {
    TaskShape shape;
    shape.input_width = law_.dim;
    shape.output_width = law_.dim;
    shape.tokens_per_point = 0;  // the pairs come on top: see tokens_at()
    shape.max_tokens = law_.tokens();
    return shape;
  }
  [[nodiscard]] std::int64_t tokens_at(std::int64_t /*points*/) const override { return law_.tokens(); }
  [[nodiscard]] std::int64_t points_at(std::uint64_t /*step*/) const override { return law_.points(); }
  [[nodiscard]] std::int64_t dims_at(std::uint64_t /*step*/) const override { return law_.dim; }
  [[nodiscard]] std::int64_t final_points() const override { return law_.points(); }
  [[nodiscard]] std::int64_t steps_per_epoch() const override { return order_.examples > 0 ? order_.steps() : 0; }
  [[nodiscard]] std::int64_t examples_until(std::int64_t steps, std::int64_t batch) const override {
    return order_.examples > 0 ? order_.examples_until(steps) : steps * batch;
  }
  /// A query stands for itself, the first one too: there is no position without examples before it.
  [[nodiscard]] Headline headline() const override { return Headline::MeanAll; }

  [[nodiscard]] Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const override {
    require(ctx.state != nullptr, "sample: the context has no step state");
    require(points == law_.points(), "sample: {} points, expected the task's {}", points, law_.points());
    const bool fixed_set = order_.examples > 0 && selection.domain == RandomDomain::Train;
    require(!fixed_set || selection.first + selection.batch <= order_.batch,
            "sample: examples {} to {} of a step, expected at most the {} of train.batch", selection.first,
            selection.first + selection.batch - 1, order_.batch);
    Batch batch;
    batch.tokens = ctx.empty({selection.batch, law_.tokens(), round_up(law_.dim, 8)}, ctx.compute_dtype(), "vectors");
    batch.targets = ctx.empty({selection.batch, points, law_.dim}, ctx.stream_dtype(), "retrieved vectors");
    if (law_.slots > 0 || (fixed_set && order_.has_short_step())) {
      batch.mask = ctx.empty({selection.batch, points}, DType::U8, "scored queries");
    }
    sample_vectors(ctx, {law_, order_, selection, ctx.state, batch.tokens.mutable_view(), batch.targets.mutable_view(),
                         batch.mask ? batch.mask.mutable_view() : View{}});
    return batch;
  }

  [[nodiscard]] Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return squared_error(ctx, outputs, batch.targets, batch.mask, options());
  }
  [[nodiscard]] Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return point_scores(ctx, squared_norm_ ? ScoreKind::SquaredError : ScoreKind::MeanSquaredError, outputs,
                        batch.targets, batch.mask, options());
  }

  /// inputs: the vectors; scored and targets: the query tokens and their values; truth: the pairs they ask for.
  [[nodiscard]] Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                              std::uint32_t example) const override {
    StepState state;
    state.seed = seed;
    state.step = step;
    const Draw draw = vector_example(order_, {domain, 1, example, false}, state, 0).draw;
    Choice choice(law_);
    const std::int32_t* asked = choice.make(law_, draw);
    const std::vector<float> zero(static_cast<std::size_t>(law_.dim));
    Prompt prompt;
    prompt.dim = law_.dim;
    prompt.inputs.assign(static_cast<std::size_t>(law_.tokens()), zero);
    std::vector<std::vector<float>> values(static_cast<std::size_t>(law_.points()), zero);
    const auto put_in = [](std::vector<std::vector<float>>& rows) {
      return [&rows](int row, int j, float value) {
        rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(j)] = value;
      };
    };
    law_.write(Threads{}, draw, asked, put_in(prompt.inputs), put_in(values));
    for (int i = 0; i < law_.points(); ++i) {
      if (asked[i] < 0) continue;
      prompt.scored.push_back(law_.first_point() + law_.point_stride() * i);
      prompt.targets.push_back(values[static_cast<std::size_t>(i)]);
      prompt.truth.push_back(static_cast<float>(asked[i]));
    }
    return prompt;
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    std::string text;
    for (std::size_t i = 0; i < prompt.truth.size(); ++i) {
      const auto pair = static_cast<int>(prompt.truth[i]);
      const std::string asked = pair < law_.pairs ? fmt::format("{}", pair) : "no pair";
      text += fmt::format("{}token {} asks for {}", i == 0 ? "" : ", ", prompt.scored[i], asked);
    }
    return text + "; pair p is tokens 2 p and 2 p + 1";
  }
  [[nodiscard]] std::string_view score_name() const override {
    return squared_norm_ ? "squared norm of the error" : "squared error a coordinate";
  }
  [[nodiscard]] std::string description() const override { return description_; }

 private:
  [[nodiscard]] SquaredErrorOptions options() const {
    return {
        .position_stride = law_.point_stride(), .position_offset = law_.first_point(), .sum_columns = squared_norm_};
  }
  VectorRetrieval law_;
  EpochOrder order_;
  bool squared_norm_;
  std::string description_;
};

constexpr double kMost = 1024;  // of dimensions, pairs, queries and slots

SettingKey dim_key() {
  return SettingKey::integer("task.dim", "dimension of a vector").with_default(20).between(1, kMost);
}
SettingKey samples_key(int samples) {
  return SettingKey::integer("task.samples",
                             "examples of a fixed training set, read in a new order each epoch; 0: new ones each step")
      .with_default(samples)
      .between(0, 1e9)
      .in("prompts");
}
/// Baselines of regression read x and y, which these tasks do not have.
SettingKey no_baselines() {
  return SettingKey::texts("eval.baselines", "baselines to compare with: this task has none")
      .with_defaults({"all"})
      .one_of({"all"});
}

VectorRetrieval law_of(const Settings& settings) {
  VectorRetrieval law;
  law.dim = static_cast<int>(settings.integer("task.dim"));
  law.pairs = static_cast<int>(settings.integer("task.pairs"));
  return law;
}

EpochOrder order_of(const Settings& settings) {
  return {settings.integer("task.samples"), settings.integer("train.batch")};
}

std::string training_set_text(const EpochOrder& order) {
  return order.examples == 0 ? "new examples each step" : fmt::format("{} training examples", order.examples);
}

bool has_slots(const Settings& settings) { return settings.has("task.slots"); }

/// The learning rate of the study falls from epoch to epoch, whatever batch and training set make an epoch.
SettingKey schedule_every_key() {
  return SettingKey::integer("schedule.every", "steps between changes of the learning rate")
      .worked_out("the steps of an epoch where the learning rate falls and the training set is fixed, else 1",
                  [](const Settings& settings) -> SettingValue {
                    const EpochOrder order = order_of(settings);
                    const bool once_an_epoch = order.examples > 0 && settings.text("schedule.name") != "constant";
                    return once_an_epoch ? order.steps() : std::int64_t{1};
                  })
      .between(1, 1e12)
      .in("steps")
      .elsewhere_called({"interval", "step_size_up", "steps_per_epoch"});
}

void check_queries(const Settings& settings, SettingMistakes& mistakes) {
  const std::int64_t queries = settings.integer("task.queries");
  const std::int64_t pairs = settings.integer("task.pairs");
  if (queries > pairs) {
    mistakes.add({"task.queries", "task.pairs"},
                 fmt::format("got {}, expected at most task.pairs = {}: no pair is asked for twice", queries, pairs));
  }
  if (has_slots(settings) && queries > settings.integer("task.slots")) {
    mistakes.add({"task.queries", "task.slots"},
                 fmt::format("got {}, expected at most task.slots = {}: a slot holds one query", queries,
                             settings.integer("task.slots")));
  }
}

std::unique_ptr<Task> make_mqar(const Settings& settings) {
  VectorRetrieval law = law_of(settings);
  law.queries = static_cast<int>(settings.integer("task.queries"));
  if (has_slots(settings)) law.slots = static_cast<int>(settings.integer("task.slots"));
  const EpochOrder order = order_of(settings);
  std::string text = fmt::format(
      "vector MQAR: {} of {} keys asked for{}, keys and values uniform on the unit sphere in R^{}, {}", law.queries,
      law.pairs, law.slots > 0 ? fmt::format(" in {} slots", law.slots) : "", law.dim, training_set_text(order));
  return std::make_unique<VectorRetrievalTask>(law, order, true, std::move(text));
}

std::unique_ptr<Task> make_single(const Settings& settings) {
  VectorRetrieval law = law_of(settings);
  law.queries = 1;
  law.norm = std::sqrt(static_cast<float>(law.dim));
  law.unmatched = settings.boolean("task.unmatched");
  const EpochOrder order = order_of(settings);
  std::string text = fmt::format(
      "vector retrieval: one of {} keys{} asked for, keys and values uniform on the sphere of norm sqrt({}) in R^{}, "
      "{}",
      law.pairs, law.unmatched ? " or an unknown one" : "", law.dim, law.dim, training_set_text(order));
  return std::make_unique<VectorRetrievalTask>(law, order, false, std::move(text));
}

const RegisterSettings mqar_keys{{
    .table = "task",
    .owner = "vector_mqar",
    .doc = "values of several keys, out of a list of pairs of unit vectors",
    .keys =
        {
            dim_key(),
            SettingKey::integer("task.pairs", "pairs of a key and a value").with_default(32).between(1, kMost),
            SettingKey::integer("task.queries", "keys asked for, each another one").with_default(16).between(1, kMost),
            SettingKey::text("task.layout",
                             "queries: they follow the pairs; zoology: at random, mostly early places among zeros")
                .with_default("queries")
                .one_of({"queries", "zoology"}),
            SettingKey::integer("task.slots", "places for a query after the pairs, two tokens each (layout zoology)")
                .default_from("task.pairs")
                .only_with("task.layout", "zoology")
                .between(1, kMost),
            samples_key(300000),
            SettingKey::integer("eval.prompts", "prompts of an evaluation, the same each time")
                .with_default(3000)
                .between(1, 1e9)
                .in("prompts"),
            SettingKey::integer("eval.batch", "prompts of an evaluation that are computed together")
                .with_default(100)
                .between(1, 1 << 24)
                .in("prompts")
                .elsewhere_called({"batch_size", "eval_batch_size"}),
            schedule_every_key(),
            no_baselines(),
        },
    .checks = {check_queries},
}};

const RegisterSettings single_keys{{
    .table = "task",
    .owner = "vector_retrieval",
    .doc = "the value of one key, out of a list of pairs of vectors of norm sqrt(dim)",
    .keys =
        {
            dim_key(),
            SettingKey::integer("task.pairs", "pairs of a key and a value").with_default(64).between(1, kMost),
            SettingKey::boolean("task.unmatched",
                                "with probability 1 / (pairs + 1) the query is no key and its target a new vector, as "
                                "in the study's code")
                .with_default(true),
            samples_key(0),
            no_baselines(),
        },
}};

const RegisterTask registered_mqar{{"vector_mqar", make_mqar}};
const RegisterTask registered_single{{"vector_retrieval", make_single}};
const Register cpu_sampler{sample_vectors, Backend::Cpu, sample_cpu};

}  // namespace
}  // namespace graft
