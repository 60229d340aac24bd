#include "ops/elementwise_cpu.h"
#include "ops/gelu.h"
#include "ops/gelu_formula.h"

namespace graft {
namespace {

template <class A>
A value_of(A x, GeluKind kind) {
  return kind == GeluKind::Tanh ? gelu_tanh(x) : gelu_erf(x);
}

template <class A>
A slope_of(A x, GeluKind kind) {
  return kind == GeluKind::Tanh ? gelu_tanh_slope(x) : gelu_erf_slope(x);
}

void forward(Stream& stream, const GeluForward& args) {
  elementwise_forward(stream, args.x, args.y, [kind = args.kind](auto x) { return value_of(x, kind); });
}

void backward(Stream& stream, const GeluBackward& args) {
  elementwise_backward(stream, args.x, args.dy, args.dx, [kind = args.kind](auto x) { return slope_of(x, kind); });
}

const Register registered_forward{gelu_forward, Backend::Cpu, forward};
const Register registered_backward{gelu_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
