#include "ops/binary_cross_entropy.h"

#include "cuda/point_loss.cuh"

namespace graft::cuda {
namespace {

struct BinaryCrossEntropy {
  BinaryTargets kind;

  [[nodiscard]] __device__ __forceinline__ float probability(float target) const {
    return kind == BinaryTargets::Signs ? 0.5F * target + 0.5F : target;
  }
  [[nodiscard]] __device__ __forceinline__ float value(float z, float target) const {
    return fmaxf(z, 0.F) - z * probability(target) + log1pf(expf(-fabsf(z)));
  }
  [[nodiscard]] __device__ __forceinline__ float slope(float z, float target) const {
    return 1.F / (1.F + expf(-z)) - probability(target);
  }
};

void launch_forward(Stream& stream, const BinaryCrossEntropyForward& args) {
  point_loss::launch_forward(stream, args, BinaryCrossEntropy{args.kind}, "binary_cross_entropy_forward");
}

void launch_backward(Stream& stream, const BinaryCrossEntropyBackward& args) {
  point_loss::launch_backward(stream, args, BinaryCrossEntropy{args.kind}, "binary_cross_entropy_backward");
}

const Register forward{binary_cross_entropy_forward, Backend::Cuda, launch_forward};
const Register backward{binary_cross_entropy_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
