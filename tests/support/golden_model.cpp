#include "tests/support/golden_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/require.h"
#include "ops/squared_error.h"

namespace graft::test {
namespace {

using Buffer = ParameterStore::Buffer;

std::vector<double> transposed(const std::vector<double>& values, std::int64_t rows, std::int64_t columns) {
  std::vector<double> result(values.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      result[static_cast<std::size_t>(j * rows + i)] = values[static_cast<std::size_t>(i * columns + j)];
    }
  }
  return result;
}

/// Row i of the result is row rows[i] of `values`; with `back` the other way round.
std::vector<double> reordered(const std::vector<double>& values, const std::vector<std::int64_t>& rows, bool back) {
  std::vector<double> result(values.size());
  const std::size_t columns = values.size() / rows.size();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto other = static_cast<std::size_t>(rows[i]);
    const std::size_t from = back ? i : other;
    const std::size_t to = back ? other : i;
    for (std::size_t c = 0; c < columns; ++c) result[to * columns + c] = values[from * columns + c];
  }
  return result;
}

std::vector<std::int64_t> without_ones(const Shape& shape) {
  std::vector<std::int64_t> extents;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] != 1) extents.push_back(shape[i]);
  }
  return extents;
}

}  // namespace

ModelShape shape_of_case(const GoldenCase& golden) {
  ModelShape shape;
  shape.max_tokens = golden.integer("points") * (golden.flag("interleave") ? 2 : 1);
  if (golden.integer("vocab_size") > 0) {
    shape.vocabulary = golden.integer("vocab_size");
  } else {
    shape.input_width = golden.integer("n_dims");
    shape.output_width = golden.shape("param._read_out.weight")[0];
  }
  return shape;
}
void place_rows(const std::vector<double>& values, std::int64_t from, std::vector<double>& result, std::int64_t to,
                std::int64_t stride, std::int64_t offset) {
  const std::int64_t rows = static_cast<std::int64_t>(values.size()) / from;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t c = 0; c < from; ++c) {
      result[static_cast<std::size_t>((row * stride + offset) * to + c)] =
          values[static_cast<std::size_t>(row * from + c)];
    }
  }
}

std::vector<double> take_rows(const std::vector<double>& values, std::int64_t stored, std::int64_t columns,
                              std::int64_t stride, std::int64_t offset) {
  std::vector<double> result;
  const std::int64_t rows = static_cast<std::int64_t>(values.size()) / stored;
  for (std::int64_t row = offset; row < rows; row += stride) {
    for (std::int64_t c = 0; c < columns; ++c) result.push_back(values[static_cast<std::size_t>(row * stored + c)]);
  }
  return result;
}

std::vector<std::int64_t> rows_of_interleaved_heads(std::int64_t heads, std::int64_t width) {
  const std::int64_t size = width / heads;
  std::vector<std::int64_t> rows;
  for (std::int64_t part = 0; part < 3; ++part) {
    for (std::int64_t row = 0; row < width; ++row) rows.push_back((row / size * 3 + part) * size + row % size);
  }
  return rows;
}

void CaseParameters::load() {
  const GoldenCase& golden = run_.golden();
  store_.allocate(run_.ctx());
  for (const std::string& name : golden.names("param.")) {
    const bool known =
        std::any_of(pairs_.begin(), pairs_.end(), [&](const NamePair& pair) { return pair.reference == name; });
    if (!known) throw DataError(fmt::format("parameter {} has no counterpart in the model", name));
  }
  require(pairs_.size() == store_.entries().size(), "{} parameters, expected {}", pairs_.size(),
          store_.entries().size());
  for (const NamePair& pair : pairs_) {
    const ParameterStore::Entry& entry = find(pair);
    const std::string name = "param." + pair.reference;
    const Shape& shape = golden.shape(name);
    const Shape expected = pair.transposed ? Shape{entry.shape[1], entry.shape[0]} : entry.shape;
    require(without_ones(shape) == without_ones(expected), "parameter {}: {}, expected {}", pair.reference, shape.str(),
            expected.str());
    std::vector<double> values = golden.values(name);
    if (pair.transposed) values = transposed(values, shape[0], shape[1]);
    if (!pair.rows.empty()) values = reordered(values, pair.rows, false);
    store_.write(run_.ctx(), entry, Buffer::Weights, values);
  }
  store_.refresh_compute_copy(run_.ctx());
}

void CaseParameters::check_gradients() {
  for (const NamePair& pair : pairs_) {
    const ParameterStore::Entry& entry = find(pair);
    std::vector<double> values = store_.read(run_.ctx(), entry, Buffer::Gradients);
    if (!pair.rows.empty()) values = reordered(values, pair.rows, true);
    if (pair.transposed) values = transposed(values, entry.shape[0], entry.shape[1]);
    run_.check_gradient("param." + pair.reference, values);
  }
}

const ParameterStore::Entry& CaseParameters::find(const NamePair& pair) const {
  const ParameterStore::Entry* entry = store_.find(pair.ours);
  require(entry != nullptr, "the model has no parameter {}", pair.ours);
  return *entry;
}

CaseModel::CaseModel(GoldenRun& run, const ModelConfig& config, const ModelShape& shape,
                     const std::vector<NamePair>& pairs)
    : run_(run), shape_(shape), parameters_(run, pairs), model_(parameters_.store(), config, shape_) {
  parameters_.load();
}

Grads CaseModel::backward(Tape& tape, const Tensor& loss) {
  run_.check_output("loss", run_.device().values(loss));
  ParameterStore& store = parameters_.store();
  store.begin_gradients();
  Grads grads = tape.backward(run_.ctx(), loss, &store);
  store.finish_gradients(run_.ctx());
  parameters_.check_gradients();
  return grads;
}

void run_vector_case(GoldenRun& run, CaseModel& model) {
  const GoldenCase& golden = run.golden();
  const bool interleave = golden.flag("interleave");
  const Shape& xs = golden.shape("in.xs");
  const std::int64_t stride = interleave ? 2 : 1;
  const std::int64_t width = xs[2];
  const std::int64_t stored = round_up(width, 8);
  std::vector<double> values(static_cast<std::size_t>(xs[0] * xs[1] * stride * stored), 0);
  place_rows(golden.values("in.xs"), width, values, stored, stride, 0);
  if (interleave) place_rows(golden.values("in.ys"), width, values, stored, stride, 1);
  Tensor tokens = run.tensor({xs[0], xs[1] * stride, stored}, values);
  tokens.set_requires_grad(true);

  // what is predicted where
  const std::int64_t columns = model.shape().output_width;
  const std::int64_t count = interleave ? xs[1] : 1;
  const std::int64_t offset = interleave ? 0 : xs[1] - 1;
  const std::vector<double> targets =
      interleave ? take_rows(golden.values("in.ys"), width, columns, 1, 0) : golden.values("in.target");
  Tape tape;
  const Context recording = run.ctx().with_tape(tape);
  const Tensor outputs = model.model()(recording, tokens);
  SquaredErrorOptions options;
  options.columns = columns;
  options.position_stride = stride;
  options.position_offset = offset;
  const Tensor goal = run.device().tensor({xs[0], count, columns}, run.ctx().stream_dtype(), targets);
  const Tensor loss = squared_error(recording, outputs, goal, {}, options);

  const std::int64_t period = interleave ? stride : xs[1];
  run.check_output("out.prediction",
                   take_rows(run.device().values(outputs), outputs.shape()[2], columns, period, offset));
  const Grads grads = model.backward(tape, loss);
  const std::vector<double> gradient = run.device().values(grads.tensor(tokens));
  run.check_gradient("in.xs", take_rows(gradient, stored, width, stride, 0));
  if (interleave) run.check_gradient("in.ys", take_rows(gradient, stored, width, stride, 1));
}

}  // namespace graft::test
