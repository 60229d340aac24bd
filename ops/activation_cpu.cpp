#include "ops/activation.h"
#include "ops/elementwise_cpu.h"
#include "ops/relu_formula.h"
#include "ops/softplus_formula.h"

namespace graft {
namespace {

template <class A>
A value_of(A x, ActivationKind kind) {
  if (kind == ActivationKind::Silu) return silu(x);
  return kind == ActivationKind::Softplus ? softplus(x) : relu(x);
}

template <class A>
A slope_of(A x, ActivationKind kind) {
  if (kind == ActivationKind::Silu) return silu_slope(x);
  return kind == ActivationKind::Softplus ? softplus_slope(x) : relu_slope(x);
}

void forward(Stream& stream, const ActivationForward& args) {
  elementwise_forward(stream, args.x, args.y, [kind = args.kind](auto x) { return value_of(x, kind); });
}

void backward(Stream& stream, const ActivationBackward& args) {
  elementwise_backward(stream, args.x, args.dy, args.dx, [kind = args.kind](auto x) { return slope_of(x, kind); });
}

const Register registered_forward{activation_forward, Backend::Cpu, forward};
const Register registered_backward{activation_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
