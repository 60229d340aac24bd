#include "ops/point_loss_cpu.h"
#include "ops/squared_error.h"

namespace graft {
namespace {

void forward(Stream& stream, const SquaredErrorForward& args) {
  point_loss_forward(stream, args, [](double prediction, double target) {
    const double error = prediction - target;
    return error * error;
  });
}

void backward(Stream& stream, const SquaredErrorBackward& args) {
  point_loss_backward(stream, args, [](double prediction, double target) { return 2 * (prediction - target); });
}

const Register registered_forward{squared_error_forward, Backend::Cpu, forward};
const Register registered_backward{squared_error_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
