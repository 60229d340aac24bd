#include "ops/squared_error.h"

#include "cuda/point_loss.cuh"

namespace graft::cuda {
namespace {

struct SquaredError {
  [[nodiscard]] __device__ __forceinline__ float value(float prediction, float target) const {
    const float error = prediction - target;
    return error * error;
  }
  [[nodiscard]] __device__ __forceinline__ float slope(float prediction, float target) const {
    return 2.F * (prediction - target);
  }
};

void launch_forward(Stream& stream, const SquaredErrorForward& args) {
  point_loss::launch_forward(stream, args, SquaredError{}, "squared_error_forward");
}

void launch_backward(Stream& stream, const SquaredErrorBackward& args) {
  point_loss::launch_backward(stream, args, SquaredError{}, "squared_error_backward");
}

const Register forward{squared_error_forward, Backend::Cuda, launch_forward};
const Register backward{squared_error_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
