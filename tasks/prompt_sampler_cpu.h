#pragma once

#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/dtype.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One prompt on the host, as tasks/task.h has it.
struct DrawnPrompt {
  std::vector<float> parameters;
  std::vector<float> xs;                    // [points, dim]
  std::vector<float> ys;                    // [points]
  std::vector<std::uint8_t> scored_points;  // [points], and
  std::vector<float> y_vectors;             // [points, dim]: only for a law that HasOutliers
};

/// Draws a prompt in which coordinates >= active of x are set to zero.
template <class Law>
void draw_prompt(const Law& law, const Draw& draw, std::int64_t points, int active, DrawnPrompt& prompt) {
  std::vector<float>& parameters = prompt.parameters;
  parameters.resize(static_cast<std::size_t>(law.parameters()));
  for (int j = 0; j < law.parameters(); ++j) parameters[static_cast<std::size_t>(j)] = law.parameter(draw, j);
  if constexpr (SettlesParameters<Law>) law.settle(draw, active, parameters.data());
  const std::int64_t elements = points * law.dim;
  std::vector<float>& xs = prompt.xs;
  xs.resize(static_cast<std::size_t>(round_up(elements, 4)));
  for (std::int64_t block = 0; block * 4 < elements; ++block) {
    law.inputs4(draw, static_cast<int>(block), &xs[static_cast<std::size_t>(4 * block)]);
  }
  xs.resize(static_cast<std::size_t>(elements));
  prompt.ys.resize(static_cast<std::size_t>(points));
  if constexpr (HasOutliers<Law>) {
    prompt.scored_points.assign(static_cast<std::size_t>(points), 1);
    prompt.y_vectors.assign(static_cast<std::size_t>(elements), 0.F);
  }
  for (std::int64_t i = 0; i < points; ++i) {
    float* x = &xs[static_cast<std::size_t>(i * law.dim)];
    float& y = prompt.ys[static_cast<std::size_t>(i)];
    if constexpr (HasOutliers<Law>) {
      float* y_vector = &prompt.y_vectors[static_cast<std::size_t>(i * law.dim)];
      if (law.is_outlier(draw, static_cast<int>(i))) {
        const typename Law::Outlier outlier = law.outlier(draw, static_cast<int>(i));
        for (int j = 0; j < law.dim; ++j) {
          x[j] = law.outlier_x(parameters.data(), outlier, j);
          y_vector[j] = law.outlier_y(parameters.data(), outlier, j);
        }
        y = y_vector[0];
        prompt.scored_points[static_cast<std::size_t>(i)] = 0;
        continue;
      }
    }
    for (int j = active; j < law.dim; ++j) x[j] = 0.F;
    y = law.label(parameters.data(), x);
    if constexpr (HasOutliers<Law>) prompt.y_vectors[static_cast<std::size_t>(i * law.dim)] = y;
  }
}

template <class T, class Law>
void write_prompt(const SamplePrompts<Law>& args, std::int64_t example, const DrawnPrompt& prompt) {
  const std::int64_t width = args.tokens.shape.columns();
  const std::int64_t dim = args.law.dim;
  T* tokens = args.tokens.template as<T>() + example * 2 * args.points * width;
  for (std::int64_t i = 0; i < args.points; ++i) {
    T* x = tokens + 2 * i * width;
    T* y = x + width;
    const float label = prompt.ys[static_cast<std::size_t>(i)];
    for (std::int64_t j = 0; j < width; ++j) {
      const auto element = static_cast<std::size_t>(i * dim + j);
      x[j] = static_cast<T>(j < dim ? prompt.xs[element] : 0.F);
      if constexpr (HasOutliers<Law>) {
        y[j] = static_cast<T>(j < dim ? prompt.y_vectors[element] : 0.F);
      } else {
        y[j] = static_cast<T>(j == 0 ? label : 0.F);
      }
    }
    const std::int64_t at = example * args.points + i;
    if constexpr (HasOutliers<Law>) {
      args.mask.template as<std::uint8_t>()[at] = prompt.scored_points[static_cast<std::size_t>(i)];
    }
    if (args.targets.dtype == DType::F64) {
      args.targets.template as<double>()[at] = static_cast<double>(label);
    } else {
      args.targets.template as<float>()[at] = label;
    }
  }
}

/// CPU kernel of a law's sampler.
template <class Law>
void sample_prompts_cpu(Stream& stream, const SamplePrompts<Law>& args) {
  const StepState& state = *args.state;
  const int active = active_dims(args.selection, args.dims, state, args.law.dim);
  parallel_for(stream, args.selection.batch, 8, [&](std::int64_t first, std::int64_t last) {
    DrawnPrompt prompt;
    for (std::int64_t i = first; i < last; ++i) {
      draw_prompt(args.law, draw_of(args.selection, state, i), args.points, active, prompt);
      switch (args.tokens.dtype) {
        case DType::F64:
          write_prompt<double>(args, i, prompt);
          break;
        case DType::BF16:
          write_prompt<bfloat16>(args, i, prompt);
          break;
        default:
          write_prompt<float>(args, i, prompt);
      }
    }
  });
}

}  // namespace graft
