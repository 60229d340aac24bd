#pragma once

#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/dtype.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// One prompt on the host: parameters, inputs [points, dim] with coordinates >= active set to zero, labels.
template <class Law>
void draw_prompt(const Law& law, const Draw& draw, std::int64_t points, int active, std::vector<float>& parameters,
                 std::vector<float>& xs, std::vector<float>& ys) {
  parameters.resize(static_cast<std::size_t>(law.parameters()));
  for (int j = 0; j < law.parameters(); ++j) parameters[static_cast<std::size_t>(j)] = law.parameter(draw, j);
  const std::int64_t elements = points * law.dim;
  xs.resize(static_cast<std::size_t>(round_up(elements, 4)));
  for (std::int64_t block = 0; block * 4 < elements; ++block) {
    law.inputs4(draw, static_cast<int>(block), &xs[static_cast<std::size_t>(4 * block)]);
  }
  xs.resize(static_cast<std::size_t>(elements));
  ys.resize(static_cast<std::size_t>(points));
  for (std::int64_t i = 0; i < points; ++i) {
    float* x = &xs[static_cast<std::size_t>(i * law.dim)];
    for (int j = active; j < law.dim; ++j) x[j] = 0.F;
    ys[static_cast<std::size_t>(i)] = law.label(parameters.data(), x);
  }
}

template <class T, class Law>
void write_prompt(const SamplePrompts<Law>& args, std::int64_t example, const std::vector<float>& xs,
                  const std::vector<float>& ys) {
  const std::int64_t width = args.tokens.shape.columns();
  T* tokens = args.tokens.template as<T>() + example * 2 * args.points * width;
  for (std::int64_t i = 0; i < args.points; ++i) {
    T* x = tokens + 2 * i * width;
    T* y = x + width;
    for (std::int64_t j = 0; j < width; ++j) {
      x[j] = static_cast<T>(j < args.law.dim ? xs[static_cast<std::size_t>(i * args.law.dim + j)] : 0.F);
      y[j] = static_cast<T>(j == 0 ? ys[static_cast<std::size_t>(i)] : 0.F);
    }
    const std::int64_t at = example * args.points + i;
    if (args.targets.dtype == DType::F64) {
      args.targets.template as<double>()[at] = static_cast<double>(ys[static_cast<std::size_t>(i)]);
    } else {
      args.targets.template as<float>()[at] = ys[static_cast<std::size_t>(i)];
    }
  }
}

/// CPU kernel of a law's sampler.
template <class Law>
void sample_prompts_cpu(Stream& stream, const SamplePrompts<Law>& args) {
  const StepState& state = *args.state;
  const int active = active_dims(args.selection, args.dims, state, args.law.dim);
  parallel_for(stream, args.selection.batch, 8, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> parameters;
    std::vector<float> xs;
    std::vector<float> ys;
    for (std::int64_t i = first; i < last; ++i) {
      draw_prompt(args.law, draw_of(args.selection, state, i), args.points, active, parameters, xs, ys);
      switch (args.tokens.dtype) {
        case DType::F64:
          write_prompt<double>(args, i, xs, ys);
          break;
        case DType::BF16:
          write_prompt<bfloat16>(args, i, xs, ys);
          break;
        default:
          write_prompt<float>(args, i, xs, ys);
      }
    }
  });
}

}  // namespace graft
