#include <algorithm>
#include <cmath>

#include "ops/binary_cross_entropy.h"
#include "ops/point_loss_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

double probability(double target, BinaryTargets kind) {
  return kind == BinaryTargets::Signs ? 0.5 * target + 0.5 : target;
}

void forward(Stream& stream, const BinaryCrossEntropyForward& args) {
  point_loss_forward(stream, args, [kind = args.kind](double z, double target) {
    return std::max(z, 0.0) - z * probability(target, kind) + std::log1p(std::exp(-std::abs(z)));
  });
}

void backward(Stream& stream, const BinaryCrossEntropyBackward& args) {
  point_loss_backward(stream, args,
                      [kind = args.kind](double z, double target) { return sigmoid(z) - probability(target, kind); });
}

const Register registered_forward{binary_cross_entropy_forward, Backend::Cpu, forward};
const Register registered_backward{binary_cross_entropy_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
