// Golden cases of the S4D layer and of rotary attention.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/glu.h"
#include "ops/linear.h"
#include "ops/rotary.h"
#include "ops/s4d.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// Swaps the last two axes of a [batch, rows, columns] tensor.
std::vector<double> turned(const std::vector<double>& values, std::int64_t batch, std::int64_t rows,
                           std::int64_t columns) {
  std::vector<double> result(values.size());
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        result[static_cast<std::size_t>((b * columns + c) * rows + r)] =
            values[static_cast<std::size_t>((b * rows + r) * columns + c)];
      }
    }
  }
  return result;
}

S4dParameters s4d_parameters(const GoldenRun& run, const std::string& prefix) {
  return {.c = run.tensor(prefix + "C"),
          .log_dt = run.tensor(prefix + "log_dt"),
          .log_a_real = run.tensor(prefix + "log_A_real"),
          .a_imag = run.tensor(prefix + "A_imag")};
}

void check_s4d_gradients(GoldenRun& run, const std::string& prefix, const S4dParameters& p, const Grads& grads) {
  const auto check = [&](const std::string& name, const Tensor& parameter) {
    run.check_gradient(name, run.device().values(grads.tensor(parameter)));
  };
  check(prefix + "C", p.c);
  check(prefix + "log_dt", p.log_dt);
  check(prefix + "log_A_real", p.log_a_real);
  check(prefix + "A_imag", p.a_imag);
  if (p.skip) check("param.D", p.skip);
}

void run_s4d_kernel(GoldenRun& run) {
  const S4dParameters parameters = s4d_parameters(run, "param.");
  Tape tape;
  const Tensor kernel = s4d_kernel(run.ctx().with_tape(tape), parameters, run.golden().integer("L"));
  const std::vector<double> values = run.device().values(kernel);
  run.check_output("out.K", values);
  run.check_projected_loss(values);
  const Grads grads = tape.backward_from(run.ctx(), {{kernel, run.tensor("in.cotangent")}});
  check_s4d_gradients(run, "param.", parameters, grads);
}

// The case stores [batch, channel, token]; the op reads [batch, token, channel], the gate out of a packed tensor.
void run_s4d_conv(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& stored = golden.shape("in.u");
  const std::int64_t batch = stored[0], channels = stored[1], tokens = stored[2];
  const Shape shape{batch, tokens, channels};
  const auto by_token = [&](const char* name) { return turned(golden.values(name), batch, channels, tokens); };
  const auto by_channel = [&](const std::vector<double>& values) { return turned(values, batch, tokens, channels); };
  Tensor u = run.tensor(shape, by_token("in.u"));
  u.set_requires_grad(true);
  const std::int64_t offset = 3;
  const std::int64_t row = channels + 5;
  const std::vector<double> gate_values = by_token("in.gate");
  std::vector<double> packed(static_cast<std::size_t>(batch * tokens * row), 0.5);
  const auto at = [&](std::size_t i) {
    const auto width = static_cast<std::size_t>(channels);
    return i / width * static_cast<std::size_t>(row) + static_cast<std::size_t>(offset) + i % width;
  };
  for (std::size_t i = 0; i < gate_values.size(); ++i) packed[at(i)] = gate_values[i];
  Tensor gate = run.tensor({batch, tokens, row}, packed);
  gate.set_requires_grad(true);
  S4dParameters parameters = s4d_parameters(run, "param.kernel.");
  parameters.skip = run.tensor("param.D");

  Tape tape;
  const Tensor y = s4d(run.ctx().with_tape(tape), u, parameters, {gate, offset});
  const std::vector<double> values = by_channel(run.device().values(y));
  run.check_output("out.y", values);
  run.check_projected_loss(values);
  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor(shape, by_token("in.cotangent"))}});
  run.check_gradient("in.u", by_channel(run.device().values(grads.tensor(u))));
  const std::vector<double> packed_gradient = run.device().values(grads.tensor(gate));
  std::vector<double> dgate(gate_values.size());
  for (std::size_t i = 0; i < dgate.size(); ++i) dgate[i] = packed_gradient[at(i)];
  run.check_gradient("in.gate", by_channel(dgate));
  check_s4d_gradients(run, "param.kernel.", parameters, grads);
}

void run_s4d_block(GoldenRun& run) {
  const Shape& stored = run.golden().shape("param.output_linear.0.weight");
  const Tensor u = run.tensor("in.u");
  const Tensor weight = run.tensor("param.output_linear.0.weight", {stored[0], stored[1]});
  const Tensor bias = run.tensor("param.output_linear.0.bias");
  S4dParameters parameters = s4d_parameters(run, "param.kernel.");
  parameters.skip = run.tensor("param.D");

  Tape tape;
  const Context ctx = run.ctx().with_tape(tape);
  const Tensor y = glu(ctx, linear(ctx, activation(ctx, s4d(ctx, u, parameters), Activation::GeluErf), weight, bias));
  const std::vector<double> values = run.device().values(y);
  run.check_output("out.y", values);
  run.check_projected_loss(values);
  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor("in.cotangent")}});
  run.check_gradient("in.u", run.device().values(grads.tensor(u)));
  run.check_gradient("param.output_linear.0.weight", run.device().values(grads.tensor(weight)));
  run.check_gradient("param.output_linear.0.bias", run.device().values(grads.tensor(bias)));
  check_s4d_gradients(run, "param.kernel.", parameters, grads);
}

// The case stores [batch, head, token, column]; a packed row is [head, column] for each of q, k and v.
void run_rotary_attention(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& shape = golden.shape("in.q");
  const std::int64_t batch = shape[0], heads = shape[1], tokens = shape[2], head_dim = shape[3];
  const std::int64_t width = heads * head_dim;
  const auto layout = AttentionLayout::interleaved(static_cast<int>(heads), static_cast<int>(head_dim));
  const auto for_each = [&](std::int64_t row, std::int64_t offset, std::int64_t stride, auto visit) {
    std::size_t from = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t c = 0; c < head_dim; ++c) {
            visit(from++, static_cast<std::size_t>((b * tokens + t) * row + offset + h * stride + c));
          }
        }
      }
    }
  };
  const auto part_of = [&](const std::vector<double>& packed, std::int64_t row, std::int64_t offset,
                           std::int64_t stride) {
    std::vector<double> part(static_cast<std::size_t>(batch * tokens * width));
    for_each(row, offset, stride, [&](std::size_t i, std::size_t j) { part[i] = packed[j]; });
    return part;
  };

  const std::int64_t row = 3 * width;
  const char* parts[] = {"in.q", "in.k", "in.v"};
  const std::int64_t offsets[] = {layout.q_offset, layout.k_offset, layout.v_offset};
  std::vector<double> packed(static_cast<std::size_t>(batch * tokens * row));
  for (int k = 0; k < 3; ++k) {
    const std::vector<double> values = golden.values(parts[k]);
    for_each(row, offsets[k], layout.head_stride, [&](std::size_t i, std::size_t j) { packed[j] = values[i]; });
  }
  Tensor qkv = run.tensor({batch, tokens, row}, packed);
  qkv.set_requires_grad(true);

  Tape tape;
  const Context ctx = run.ctx().with_tape(tape);
  const Tensor rotated = rotary(ctx, qkv, layout, golden.integer("rotary_dims"), golden.number("rotary_base"));
  const std::vector<double> rotated_values = run.device().values(rotated);
  run.check_output("out.q_rotated", part_of(rotated_values, row, layout.q_offset, layout.head_stride));
  run.check_output("out.k_rotated", part_of(rotated_values, row, layout.k_offset, layout.head_stride));
  const Tensor y = causal_attention(ctx, rotated, layout);
  const std::vector<double> values = part_of(run.device().values(y), width, 0, head_dim);
  run.check_output("out.y", values);
  run.check_projected_loss(values);
  const std::vector<double> given = golden.values("in.cotangent");
  std::vector<double> cotangent(given.size());
  for_each(width, 0, head_dim, [&](std::size_t i, std::size_t j) { cotangent[j] = given[i]; });
  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor(y.shape(), cotangent)}});
  const std::vector<double> gradient = run.device().values(grads.tensor(qkv));
  for (int k = 0; k < 3; ++k) run.check_gradient(parts[k], part_of(gradient, row, offsets[k], layout.head_stride));
}

const RegisterGolden s4d_kernel_registered{{"s4d_kernel", run_s4d_kernel}};
const RegisterGolden s4d_conv_registered{{"s4d_conv", run_s4d_conv}};
const RegisterGolden s4d_block_registered{{"s4d_block", run_s4d_block}};
const RegisterGolden rotary_attention_registered{{"attention_rope*", run_rotary_attention}};

}  // namespace
}  // namespace graft::test
