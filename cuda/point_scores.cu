#include "cuda/launch.cuh"
#include "ops/point_scores.h"

namespace graft::cuda {
namespace {

template <class T>
__global__ void score_kernel(const PointScores args) {
  const std::int64_t point = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const SquaredErrorLayout& layout = args.layout;
  if (point >= layout.batch * layout.points) return;
  float score = static_cast<float>(kNotScored);
  if (!args.mask || args.mask.as<std::uint8_t>()[point] != 0) {
    const T* at = args.predictions.as<T>() + layout.prediction_at(point / layout.points, point % layout.points);
    score = point_score(
        args.kind, [at](std::int64_t c) { return to_float(at[c]); }, args.targets.as<float>() + layout.target_at(point),
        layout.options.columns);
  }
  args.scores.as<float>()[point] = score;
}

void score(Stream& stream, const PointScores& args) {
  constexpr int kThreads = 128;
  const std::int64_t points = args.layout.batch * args.layout.points;
  with_type(args.predictions.dtype, "point_scores", [&](auto type) {
    using T = typename decltype(type)::type;
    score_kernel<T><<<blocks_for(points, kThreads), kThreads, 0, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

const Register registered{point_scores_kernel, Backend::Cuda, score};

}  // namespace
}  // namespace graft::cuda
