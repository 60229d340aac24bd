// Golden cases of the selective scan, stored as (batch, channel, T) and with A itself instead of its logarithm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/tape.h"
#include "ops/selective_scan.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// [outer, rows, columns] to [outer, columns, rows].
std::vector<double> transposed(const std::vector<double>& values, std::int64_t outer, std::int64_t rows,
                               std::int64_t columns) {
  std::vector<double> result(values.size());
  for (std::int64_t o = 0; o < outer; ++o) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        result[static_cast<std::size_t>((o * columns + c) * rows + r)] =
            values[static_cast<std::size_t>((o * rows + r) * columns + c)];
      }
    }
  }
  return result;
}

void run_selective_scan(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& shape = golden.shape("in.u");  // [B, D, T]
  const std::int64_t batch = shape[0], width = shape[1], tokens = shape[2];
  const std::int64_t state = golden.shape("param.A")[1];
  const auto by_step = [&](const char* name) { return transposed(golden.values(name), batch, width, tokens); };
  const auto leaf = [](Tensor tensor) {
    tensor.set_requires_grad(true);
    return tensor;
  };

  SelectiveScanInputs in;
  in.u = leaf(run.tensor({batch, tokens, width}, by_step("in.u")));
  in.delta = leaf(run.tensor({batch, tokens, width}, by_step("in.delta")));
  std::vector<double> a_log = golden.values("param.A");
  for (double& a : a_log) a = std::log(-a);
  in.a_log = leaf(run.tensor({width, state}, a_log));
  std::vector<double> packed;  // rows of B, then C
  const std::vector<double> b = transposed(golden.values("in.B"), batch, state, tokens);
  const std::vector<double> c = transposed(golden.values("in.C"), batch, state, tokens);
  for (std::int64_t row = 0; row < batch * tokens; ++row) {
    packed.insert(packed.end(), b.begin() + row * state, b.begin() + (row + 1) * state);
    packed.insert(packed.end(), c.begin() + row * state, c.begin() + (row + 1) * state);
  }
  in.bc = leaf(run.tensor({batch, tokens, 2 * state}, packed));
  in.c_offset = state;
  if (golden.flag("D")) in.skip = run.tensor("param.D");
  if (golden.flag("delta_bias")) in.delta_bias = run.tensor("param.delta_bias");
  if (golden.flag("z")) in.z = leaf(run.tensor({batch, tokens, width}, by_step("in.z")));
  in.softplus = golden.flag("delta_softplus");
  in.final_state = run.ctx().empty({batch, width, state}, run.ctx().stream_dtype(), "final state");

  Tape tape;
  const Tensor y = selective_scan(run.ctx().with_tape(tape), in);
  const auto by_channel = [&](const Tensor& tensor) {
    return transposed(run.device().values(tensor), batch, tokens, width);
  };
  const std::vector<double> values = by_channel(y);
  run.check_output("out.y", values);
  run.check_output("out.last_state", run.device().values(in.final_state));
  run.check_projected_loss(values);

  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor(y.shape(), by_step("in.cotangent"))}});
  run.check_gradient("in.u", by_channel(grads.tensor(in.u)));
  run.check_gradient("in.delta", by_channel(grads.tensor(in.delta)));
  if (in.z) run.check_gradient("in.z", by_channel(grads.tensor(in.z)));
  std::vector<double> da = run.device().values(grads.tensor(in.a_log));
  const std::vector<double> a = golden.values("param.A");
  for (std::size_t i = 0; i < da.size(); ++i) da[i] /= a[i];  // d a_log = A dA
  run.check_gradient("param.A", da);
  const std::vector<double> dbc = transposed(run.device().values(grads.tensor(in.bc)), batch, tokens, 2 * state);
  std::vector<double> db, dc;
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    const auto first = dbc.begin() + sequence * 2 * state * tokens;
    db.insert(db.end(), first, first + state * tokens);
    dc.insert(dc.end(), first + state * tokens, first + 2 * state * tokens);
  }
  run.check_gradient("in.B", db);
  run.check_gradient("in.C", dc);
  if (in.skip) run.check_gradient("param.D", run.device().values(grads.tensor(in.skip)));
  if (in.delta_bias) run.check_gradient("param.delta_bias", run.device().values(grads.tensor(in.delta_bias)));
}

const RegisterGolden registered{{"selective_scan_*", run_selective_scan}};

}  // namespace
}  // namespace graft::test
