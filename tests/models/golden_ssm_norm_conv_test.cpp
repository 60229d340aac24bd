// Golden cases of what surrounds a scan: causal convolution, RMS norm, gated RMS norm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/causal_conv1d.h"
#include "ops/gated_rms_norm.h"
#include "ops/residual_norm.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// Compares y and the loss sum(y * cotangent); both in the layout of the case.
void check_projection(GoldenRun& run, const std::vector<double>& y) {
  run.check_output("out.y", y);
  run.check_projected_loss(y);
}

/// Cases with one output y in our layout: compares y, the loss and the gradients of the named tensors.
void run_map(GoldenRun& run, std::initializer_list<const char*> inputs,
             const std::function<Tensor(const Context&, const std::vector<Tensor>&)>& map) {
  std::vector<Tensor> tensors;
  for (const char* name : inputs) tensors.push_back(run.tensor(name));
  Tape tape;
  const Tensor y = map(run.ctx().with_tape(tape), tensors);
  check_projection(run, run.device().values(y));
  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor(y.shape(), run.golden().values("in.cotangent"))}});
  std::size_t k = 0;
  for (const char* name : inputs) run.check_gradient(name, run.device().values(grads.tensor(tensors[k++])));
}

/// [B, rows, columns] to [B, columns, rows].
std::vector<double> turned_around(const std::vector<double>& values, std::int64_t batch, std::int64_t rows,
                                  std::int64_t columns) {
  std::vector<double> result(values.size());
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        result[static_cast<std::size_t>((b * columns + j) * rows + i)] =
            values[static_cast<std::size_t>((b * rows + i) * columns + j)];
      }
    }
  }
  return result;
}

/// The cases' layout is [B, channels, T].
void run_conv(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& stored = golden.shape("in.x");
  const std::int64_t batch = stored[0];
  const std::int64_t channels = stored[1];
  const std::int64_t tokens = stored[2];
  const nlohmann::json activation = golden.setting("activation");
  require(activation.is_null() || activation == "silu", "{}: activation {}, expected null or silu", golden.name(),
          activation.dump());
  require(golden.shape("param.weight")[1] == golden.integer("width"), "{}: weight is {}, expected width {}",
          golden.name(), golden.shape("param.weight").str(), golden.integer("width"));
  const bool has_bias = golden.flag("bias");

  const Shape shape{batch, tokens, channels};
  Tensor x = run.tensor(shape, turned_around(golden.values("in.x"), batch, channels, tokens));
  x.set_requires_grad(true);
  const Tensor weight = run.tensor("param.weight");
  const Tensor bias = has_bias ? run.tensor("param.bias") : Tensor();
  Tape tape;
  const Tensor y = causal_conv1d(run.ctx().with_tape(tape), x, 0, channels, weight, bias, !activation.is_null());
  check_projection(run, turned_around(run.device().values(y), batch, tokens, channels));

  const Tensor cotangent = run.tensor(shape, turned_around(golden.values("in.cotangent"), batch, channels, tokens));
  const Grads grads = tape.backward_from(run.ctx(), {{y, cotangent}});
  run.check_gradient("in.x", turned_around(run.device().values(grads.tensor(x)), batch, tokens, channels));
  run.check_gradient("param.weight", run.device().values(grads.tensor(weight)));
  if (has_bias) run.check_gradient("param.bias", run.device().values(grads.tensor(bias)));
}

void run_rms_norm(GoldenRun& run) {
  const double eps = run.golden().number("eps");
  run_map(run, {"in.x", "param.weight"}, [eps](const Context& ctx, const std::vector<Tensor>& in) {
    return residual_norm(ctx, {{in[0]}}, {}, NormKind::RmsNorm, {{in[1], {}}}, false, eps).normed[0];
  });
}

void run_gated_rms_norm(GoldenRun& run) {
  const double eps = run.golden().number("eps");
  const bool norm_before_gate = run.golden().flag("norm_before_gate");
  const nlohmann::json group = run.golden().setting("group_size");
  const std::int64_t group_size = group.is_null() ? 0 : group.get<std::int64_t>();
  run_map(run, {"in.x", "in.z", "param.weight"}, [=](const Context& ctx, const std::vector<Tensor>& in) {
    return gated_rms_norm(ctx, in[0], in[1], 0, in[2], norm_before_gate, group_size, eps);
  });
}

const RegisterGolden conv_registered{{"conv1d_causal*", run_conv}};
const RegisterGolden rms_norm_registered{{"rmsnorm", run_rms_norm}};
const RegisterGolden gated_rms_norm_registered{{"gated_rmsnorm_*", run_gated_rms_norm}};

}  // namespace
}  // namespace graft::test
