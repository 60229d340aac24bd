// Golden cases of the scan of Mamba-2, which keep x, B and C apart and store A itself instead of its logarithm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/ssd.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// Rows of several [rows, ..] arrays behind each other.
std::vector<double> packed_rows(std::int64_t rows, const std::vector<std::vector<double>>& parts) {
  std::vector<double> result;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (const std::vector<double>& part : parts) {
      const auto width = static_cast<std::ptrdiff_t>(part.size()) / rows;
      result.insert(result.end(), part.begin() + row * width, part.begin() + (row + 1) * width);
    }
  }
  return result;
}

/// Columns [first, first + count) of every row.
std::vector<double> columns_of(const std::vector<double>& values, std::int64_t row, std::int64_t first,
                               std::int64_t count) {
  std::vector<double> result;
  for (auto at = values.begin(); at != values.end(); at += row) {
    result.insert(result.end(), at + first, at + first + count);
  }
  return result;
}

/// sum(values * cotangent), and the size that errors of random sign give it: about max|value| |cotangent|.
struct Projection {
  double loss = 0, squares = 0, largest = 0;
  void add(const std::vector<double>& values, const std::vector<double>& cotangent) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      loss += values[i] * cotangent[i];
      squares += cotangent[i] * cotangent[i];
      largest = std::max(largest, std::abs(values[i]));
    }
  }
  void check(GoldenRun& run) const {
    run.check_output("loss", {loss}, run.ctx().precision == Precision::Fp64 ? 0 : largest * std::sqrt(squares));
  }
};

void run_ssd(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& shape = golden.shape("in.x");  // [B, T, H, P]
  const Shape& b_shape = golden.shape("in.B");
  const std::int64_t batch = shape[0], tokens = shape[1];
  const std::int64_t inner = shape[2] * shape[3], shared = b_shape[2] * b_shape[3];
  const std::int64_t row = inner + 2 * shared;
  const auto leaf = [](Tensor tensor) {
    tensor.set_requires_grad(true);
    return tensor;
  };

  SsdInputs in;
  in.heads = shape[2];
  in.head_dim = shape[3];
  in.groups = b_shape[2];
  in.state = b_shape[3];
  in.xbc = leaf(
      run.tensor({batch, tokens, row},
                 packed_rows(batch * tokens, {golden.values("in.x"), golden.values("in.B"), golden.values("in.C")})));
  in.b_offset = inner;
  in.c_offset = inner + shared;
  in.dt = run.tensor("in.dt");
  std::vector<double> a_log = golden.values("param.A");
  for (double& a : a_log) a = std::log(-a);
  in.a_log = leaf(run.tensor({in.heads}, a_log));
  if (golden.has("param.dt_bias")) in.dt_bias = run.tensor("param.dt_bias");
  if (golden.has("param.D")) in.skip = run.tensor("param.D");
  if (golden.has("in.z")) in.z = run.tensor("in.z", {batch, tokens, inner});
  if (golden.has("in.initial_state")) in.initial_state = run.tensor("in.initial_state");
  if (!golden.setting("dt_limit").is_null()) {
    const std::vector<double> limits = golden.numbers("dt_limit");
    require(limits.size() == 2, "{}: {} dt limits, expected 2", golden.name(), limits.size());
    in.dt_min = limits[0];
    in.dt_max = limits[1];
  }
  in.want_final_state = true;

  Tape tape;
  const Ssd out = ssd(run.ctx().with_tape(tape), in);
  const std::vector<double> y = run.device().values(out.y), last = run.device().values(out.final_state);
  run.check_output("out.y", y);
  run.check_output("out.final_state", last);
  Projection projection;
  projection.add(y, golden.values("in.cotangent.y"));
  projection.add(last, golden.values("in.cotangent.final_state"));
  projection.check(run);

  const Grads grads = tape.backward_from(run.ctx(), {{out.y, run.tensor("in.cotangent.y", out.y.shape())},
                                                     {out.final_state, run.tensor("in.cotangent.final_state")}});
  const auto gradient = [&](const Tensor& tensor) { return run.device().values(grads.tensor(tensor)); };
  const std::vector<double> dxbc = gradient(in.xbc);
  run.check_gradient("in.x", columns_of(dxbc, row, 0, inner));
  run.check_gradient("in.B", columns_of(dxbc, row, in.b_offset, shared));
  run.check_gradient("in.C", columns_of(dxbc, row, in.c_offset, shared));
  run.check_gradient("in.dt", gradient(in.dt));
  std::vector<double> da = gradient(in.a_log);
  const std::vector<double> a = golden.values("param.A");
  for (std::size_t i = 0; i < da.size(); ++i) da[i] /= a[i];  // d a_log = A dA
  run.check_gradient("param.A", da);
  if (in.dt_bias) run.check_gradient("param.dt_bias", gradient(in.dt_bias));
  if (in.skip) run.check_gradient("param.D", gradient(in.skip));
  if (in.z) run.check_gradient("in.z", gradient(in.z));
  if (in.initial_state) run.check_gradient("in.initial_state", gradient(in.initial_state));
}

const RegisterGolden registered{{"ssd_*", run_ssd}};

}  // namespace
}  // namespace graft::test
