#include "tasks/linear_strategy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/cpu_stream.h"
#include "tasks/linear_strategy_task.h"
#include "tasks/regression_task.h"

namespace graft {
namespace {

void draw_rotation_cpu(Stream& stream, const SampleStrategy& args) {
  parallel_blocks(stream, 1, [&](std::int64_t) {
    draw_rotation(OneLane{}, args.law, args.state->seed, args.rotation.as<float>());
  });
}

void sum_labels_cpu(Stream& stream, const SampleStrategy& args) {
  parallel_for(stream, args.sums.shape[0] * LinearStrategy::kGroup, 8, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t slot = first; slot < last; ++slot) sum_slot(OneLane{}, args, slot);
  });
}

template <class T>
void write_sequence(const SampleStrategy& args, std::int64_t sequence, int position, const StrategyRoom& room) {
  const std::int64_t width = args.tokens.shape.columns();
  const std::int64_t points = args.law.points;
  const std::int64_t dim = args.law.dim;
  T* tokens = args.tokens.as<T>() + sequence * 2 * points * width;
  for (std::int64_t i = 0; i < points; ++i) {
    T* x = tokens + 2 * i * width;
    T* y = x + width;
    for (std::int64_t j = 0; j < width; ++j) {
      x[j] = static_cast<T>(j < dim ? room.xs[i * dim + j] : 0.F);
      y[j] = static_cast<T>(j == 0 ? room.labels[i] : 0.F);
    }
    const std::int64_t at = sequence * points + i;
    if (args.mask) args.mask.as<std::uint8_t>()[at] = i == position ? 1 : 0;
    if (args.targets.dtype == DType::F64) {
      args.targets.as<double>()[at] = static_cast<double>(room.labels[i]);
    } else {
      args.targets.as<float>()[at] = room.labels[i];
    }
  }
}

void sample_cpu(Stream& stream, const SampleStrategy& args) {
  parallel_for(stream, args.selection.batch, 4, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      int position = -1;
      const StrategyRoom room = draw_sequence(OneLane{}, args, i, &position);
      switch (args.tokens.dtype) {
        case DType::F64:
          write_sequence<double>(args, i, position, room);
          break;
        case DType::BF16:
          write_sequence<bfloat16>(args, i, position, room);
          break;
        default:
          write_sequence<float>(args, i, position, room);
      }
    }
  });
}

const Register cpu_rotation{draw_strategy_rotation, Backend::Cpu, draw_rotation_cpu};
const Register cpu_sums{sum_strategy_labels, Backend::Cpu, sum_labels_cpu};
const Register cpu_sampler{sample_linear_strategy, Backend::Cpu, sample_cpu};

struct NamedStrategy {
  const char* name;
  const char* text;
  PromptStrategy strategy;
  float x_scale = 1.F;
  float y_scale = 1.F;
};

constexpr std::array kStrategies{
    NamedStrategy{"random_quadrants", "context from a random quadrant, query from anywhere",
                  PromptStrategy::RandomQuadrants},
    NamedStrategy{"opposite_quadrants", "context from a random quadrant, query from the opposite one",
                  PromptStrategy::OppositeQuadrants},
    NamedStrategy{"orthogonal_query", "query orthogonal to all of the context", PromptStrategy::OrthogonalQuery},
    NamedStrategy{"overlapping", "query one of the context's points", PromptStrategy::Overlapping},
    NamedStrategy{"half_subspace", "x from a random half of the dimensions", PromptStrategy::HalfSubspace},
    NamedStrategy{"skewed", "x with standard deviations 1, 1/2, 1/3, ... along random axes", PromptStrategy::Skewed},
    NamedStrategy{"scaled_x_0.333", "x times 0.333", PromptStrategy::Scaled, 0.333F},
    NamedStrategy{"scaled_x_0.5", "x times 0.5", PromptStrategy::Scaled, 0.5F},
    NamedStrategy{"scaled_x_2", "x times 2", PromptStrategy::Scaled, 2.F},
    NamedStrategy{"scaled_x_3", "x times 3", PromptStrategy::Scaled, 3.F},
    NamedStrategy{"scaled_y_0.333", "y times 0.333", PromptStrategy::Scaled, 1.F, 0.333F},
    NamedStrategy{"scaled_y_0.5", "y times 0.5", PromptStrategy::Scaled, 1.F, 0.5F},
    NamedStrategy{"scaled_y_2", "y times 2", PromptStrategy::Scaled, 1.F, 2.F},
    NamedStrategy{"scaled_y_3", "y times 3", PromptStrategy::Scaled, 1.F, 3.F},
    NamedStrategy{"noisy", "y with noise of variance 1, then brought back to the variance of y without",
                  PromptStrategy::Noisy},
};

class LinearStrategyTask final : public RegressionTask<LinearRegression> {
 public:
  LinearStrategyTask(const LinearStrategy& strategy, const char* text)
      : RegressionTask(LinearRegression{strategy.dim},
                       Curriculum{false, Ramp::constant(strategy.dim), Ramp::constant(strategy.points)},
                       strategy.points, sample_linear_regression),
        strategy_(strategy),
        text_(text) {}

  [[nodiscard]] std::int64_t sequences(std::int64_t prompts) const override { return prompts * strategy_.sequences(); }

  [[nodiscard]] Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const override {
    require(ctx.state != nullptr, "sample: the context has no step state");
    require(points == final_points(), "sample: {} points, expected {}: suites have no shorter prompts", points,
            final_points());
    const std::int64_t batch_size = selection.batch;
    Batch batch;
    batch.tokens = ctx.empty({batch_size, 2 * points, round_up(law().dim, 8)}, ctx.compute_dtype(), "prompt tokens");
    batch.targets = ctx.empty({batch_size, points, 1}, ctx.stream_dtype(), "prompt targets");
    if (strategy_.has_queries()) batch.mask = ctx.empty({batch_size, points}, DType::U8, "scored points");
    const Tensor room = ctx.empty({batch_size, StrategyRoom::floats(strategy_)}, DType::F32, "room for prompts");
    Tensor rotation;
    Tensor sums;
    SampleStrategy args{strategy_,
                        selection,
                        ctx.state,
                        batch.tokens.mutable_view(),
                        batch.targets.mutable_view(),
                        batch.mask ? batch.mask.mutable_view() : View{},
                        room.mutable_view(),
                        {},
                        {}};
    if (strategy_.rotation_rows() > 0) {
      rotation = ctx.empty({strategy_.rotation_rows(), law().dim}, DType::F32, "rotation of inputs");
      args.rotation = rotation.mutable_view();
      draw_strategy_rotation(ctx, args);
    }
    if (strategy_.strategy == PromptStrategy::Noisy) {
      sums = ctx.empty({SampleStrategy::groups(batch_size), LinearStrategy::kGroup, 2}, DType::F64, "sums of labels");
      args.sums = sums.mutable_view();
      sum_strategy_labels(ctx, args);
    }
    sample_linear_strategy(ctx, args);
    return batch;
  }

  [[nodiscard]] Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                              std::uint32_t example) const override {
    const auto draw_of_prompt = [&](std::uint32_t number) { return Draw{seed, domain, step, number}; };
    const auto dim = static_cast<std::size_t>(strategy_.dim);
    std::vector<float> rotation(static_cast<std::size_t>(strategy_.rotation_rows()) * dim);
    if (!rotation.empty()) draw_rotation(OneLane{}, strategy_, seed, rotation.data());
    float factor = 1.F;
    if (strategy_.strategy == PromptStrategy::Noisy) {
      std::array<double, std::size_t{2} * LinearStrategy::kGroup> sums{};
      for (std::uint32_t p = 0; p < LinearStrategy::kGroup; ++p) {
        const std::uint32_t first = example / LinearStrategy::kGroup * LinearStrategy::kGroup;
        sum_noisy_labels(OneLane{}, strategy_, draw_of_prompt(first + p), &sums[std::size_t{2} * p]);
      }
      factor = noise_factor(strategy_, sums.data());
    }
    std::vector<float> memory(static_cast<std::size_t>(StrategyRoom::floats(strategy_)));
    const StrategyRoom room(strategy_, memory.data());
    const auto draw_at = [&](int position) {
      draw_strategy(OneLane{}, strategy_, draw_of_prompt(example), position, rotation.data(), factor, room);
    };

    Prompt prompt;
    prompt.points = final_points();
    prompt.dim = strategy_.dim;
    const auto points = static_cast<std::size_t>(prompt.points);
    draw_at(-1);
    prompt.truth.assign(room.weights, room.weights + dim);
    prompt.xs.assign(room.xs, room.xs + points * dim);
    prompt.ys.assign(room.labels, room.labels + points);
    if (!strategy_.has_queries()) return prompt;
    prompt.queries.resize(points * dim);
    prompt.query_labels.resize(points);
    if (strategy_.scored_positions() < strategy_.points) prompt.scored_points.resize(points);
    for (int i = 0; i < strategy_.scored_positions(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      draw_at(i);
      std::copy_n(room.xs + at * dim, dim, prompt.queries.begin() + static_cast<std::ptrdiff_t>(at * dim));
      prompt.query_labels[at] = room.labels[i];
      if (!prompt.scored_points.empty()) prompt.scored_points[at] = 1;
    }
    return prompt;
  }

  [[nodiscard]] std::vector<std::string> baselines() const override {
    return {"zero", "least_squares", "knn3", "averaging"};
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("linear regression: y = <w, x>, w ~ N(0, I_{}), {} points; {}", law().dim, final_points(),
                       text_);
  }

 private:
  LinearStrategy strategy_;
  const char* text_;
};

}  // namespace

std::vector<std::string> linear_strategy_names() {
  std::vector<std::string> names;
  for (const NamedStrategy& named : kStrategies) names.emplace_back(named.name);
  return names;
}

std::unique_ptr<Task> make_linear_strategy(std::string_view name, int dim, std::int64_t points) {
  for (const NamedStrategy& named : kStrategies) {
    if (name != named.name) continue;
    return std::make_unique<LinearStrategyTask>(
        LinearStrategy{named.strategy, dim, static_cast<int>(points), named.x_scale, named.y_scale}, named.text);
  }
  return nullptr;
}

}  // namespace graft
