#include "ops/activation.h"
#include "ops/elementwise_cpu.h"

namespace graft {
namespace {

void forward(Stream& stream, const ActivationForward& args) {
  with_activation(args.kind, [&](auto kind) {
    elementwise_forward(stream, args.x, args.y, [](auto x) { return activated<decltype(kind)::value>(x); });
  });
}

void backward(Stream& stream, const ActivationBackward& args) {
  with_activation(args.kind, [&](auto kind) {
    elementwise_backward(stream, args.x, args.dy, args.dx,
                         [](auto x) { return activation_slope<decltype(kind)::value>(x); });
  });
}

const Register registered_forward{activation_forward, Backend::Cpu, forward};
const Register registered_backward{activation_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
