#include "tests/support/pieces.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "ops/advance_length.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"

namespace graft::test {
namespace {}  // namespace

Tensor zeros(const Context& ctx, const Shape& shape, DType dtype) {
  Tensor result = ctx.empty_run(shape, dtype, "zeros");
  ctx.stream->zero(result.mutable_view().data, result.bytes());
  return result;
}

HostTensor tokens_of(const HostTensor& tensor, std::int64_t first, std::int64_t count) {
  const std::int64_t batch = tensor.shape[0], tokens = tensor.shape[1];
  const std::int64_t columns = tensor.shape.elements() / (batch * tokens);
  HostTensor result{{batch, count, columns}, {}, tensor.role, false};
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto from = tensor.values.begin() + (b * tokens + first) * columns;
    result.values.insert(result.values.end(), from, from + count * columns);
  }
  return result;
}

std::vector<std::vector<std::int64_t>> cuts_of(std::int64_t tokens) {
  std::vector<std::vector<std::int64_t>> cuts{{tokens}, std::vector<std::int64_t>(static_cast<std::size_t>(tokens), 1)};
  if (tokens > 9) cuts.push_back({3, 1, 5, tokens - 9});
  if (tokens > 1) cuts.push_back({tokens - 1, 1});
  return cuts;
}

std::vector<double> in_pieces(const TestDevice& device, const ExtensionMaker& make,
                              const std::vector<HostTensor>& inputs, const std::vector<std::size_t>& sequences,
                              const std::vector<std::int64_t>& cut) {
  const Context& ctx = device.ctx();
  const Extension extend = make(ctx);
  const Tensor length = zeros(ctx, {1}, DType::I32);
  const std::int64_t batch = inputs[sequences[0]].shape[0];
  std::vector<Tensor> tensors;
  for (const HostTensor& input : inputs) tensors.push_back(device.tensor(constant(input)));
  std::vector<std::vector<double>> rows(static_cast<std::size_t>(batch));  // outputs of each sequence
  std::int64_t first = 0;
  for (const std::int64_t count : cut) {
    for (const std::size_t k : sequences) tensors[k] = device.tensor(tokens_of(inputs[k], first, count));
    const std::vector<double> values = device.values(extend(tensors, length));
    const auto part = static_cast<std::int64_t>(values.size()) / batch;
    for (std::int64_t b = 0; b < batch; ++b) {
      auto& row = rows[static_cast<std::size_t>(b)];
      row.insert(row.end(), values.begin() + b * part, values.begin() + (b + 1) * part);
    }
    advance_length(ctx, length, count);
    first += count;
  }
  CHECK(device.values(length) == std::vector<double>{static_cast<double>(first)});
  std::vector<double> result;
  for (const auto& row : rows) result.insert(result.end(), row.begin(), row.end());
  return result;
}

void check_extension(Backend backend, Precision precision, const Op& whole, const ExtensionMaker& make,
                     const std::vector<HostTensor>& inputs, const std::vector<std::size_t>& sequences,
                     double tolerance) {
  const TestDevice device(backend, precision);
  const TestDevice reference(Backend::Cpu, Precision::Fp64);
  std::vector<HostTensor> rounded = inputs;
  std::vector<Tensor> tensors;
  for (HostTensor& input : rounded) {
    input.values = device.values(device.tensor(input));
    tensors.push_back(reference.tensor(constant(input)));
  }
  const std::vector<double> expected = reference.values(whole(reference.ctx(), tensors)[0]);
  const std::int64_t tokens = inputs[sequences[0]].shape[1];
  for (const std::vector<std::int64_t>& cut : cuts_of(tokens)) {
    const std::vector<double> got = in_pieces(device, make, rounded, sequences, cut);
    const double error = relative_error(got, expected);
    const std::string label = std::string(name_of(backend)) + " " + name_of(precision);
    INFO(label << ", " << tokens << " tokens in " << cut.size() << " pieces, first input " << inputs[0].shape.str()
               << ": relative error " << error);
    CHECK(error <= tolerance);
    CHECK(got == in_pieces(device, make, rounded, sequences, cut));
  }
}

}  // namespace graft::test
