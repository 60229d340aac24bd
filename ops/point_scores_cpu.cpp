#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/point_scores.h"

namespace graft {
namespace {

template <class T, class S>
void score(Stream& stream, const PointScores& args) {
  const SquaredErrorLayout& layout = args.layout;
  parallel_for(stream, layout.batch, 16, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      for (std::int64_t i = 0; i < layout.points; ++i) {
        const std::int64_t point = b * layout.points + i;
        if (args.mask && args.mask.as<std::uint8_t>()[point] == 0) {
          args.scores.as<S>()[point] = static_cast<S>(kNotScored);
          continue;
        }
        const T* at = args.predictions.as<T>() + layout.prediction_at(b, i);
        args.scores.as<S>()[point] = point_score(
            args.kind, [at](std::int64_t c) { return static_cast<S>(at[c]); },
            args.targets.as<S>() + layout.target_at(point), layout.options.columns);
      }
    }
  });
}

void score_cpu(Stream& stream, const PointScores& args) {
  switch (args.predictions.dtype) {
    case DType::F64:
      return score<double, double>(stream, args);
    case DType::BF16:
      return score<bfloat16, float>(stream, args);
    default:
      return score<float, float>(stream, args);
  }
}

const Register registered{point_scores_kernel, Backend::Cpu, score_cpu};

}  // namespace
}  // namespace graft
