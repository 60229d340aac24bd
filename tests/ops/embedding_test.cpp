#include "ops/embedding.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  std::int64_t batch, tokens, vocabulary, width;
};

// one token; ragged; aligned with several segments of ids; more ids in a row of the table than one ballot holds;
// a vocabulary so large that there is one segment
const std::vector<Size> kSizes = {{1, 1, 1, 1}, {3, 7, 17, 5}, {4, 300, 17, 128}, {2, 700, 3, 40}, {3, 200, 2500, 12}};

std::vector<HostTensor> inputs_of(const Size& size, Role role, bool positions) {
  std::vector<HostTensor> inputs{randn({size.vocabulary, size.width}, role),
                                 integers({size.batch, size.tokens}, size.vocabulary)};
  if (positions) inputs.push_back(randn({size.tokens + 3, size.width}, role, 5));
  return inputs;
}

std::vector<Tensor> embedding_op(const Context& ctx, const std::vector<Tensor>& in) {
  return {embedding(ctx, in[1], in[0], in.size() > 2 ? in[2] : Tensor())};
}

std::vector<Tensor> positions_op(const Context& ctx, const std::vector<Tensor>& in) {
  return {add_positions(ctx, in[0], in[1])};
}

std::vector<HostTensor> positions_inputs(const Shape& shape, Role x, Role table) {
  return {randn(shape, x), randn({shape[1] + 2, shape[2]}, table, 6)};
}

const std::vector<Shape> kPositionShapes = {Shape{1, 1, 1}, Shape{3, 7, 33}, Shape{2, 5, 128}, Shape{64, 82, 64},
                                            Shape{9, 3, 300}};

void check_all_parities(Backend backend) {
  // inputs enter both sides rounded; sums are float32, of up to 700 terms; only gradients of bfloat16 inputs are
  // rounded once more, by at most 2^-8 = 3.9e-3
  constexpr Tolerance kSums{2e-5, 2e-5};
  constexpr Tolerance kRounded{2e-5, 4e-3};
  for (const Size& size : kSizes) {
    for (const bool positions : {false, true}) {
      check_parity(backend, Precision::Fp32, embedding_op, inputs_of(size, Role::Weight, positions), kSums);
      check_parity(backend, Precision::Bf16, embedding_op, inputs_of(size, Role::Weight, positions), kSums);
      check_parity(backend, Precision::Bf16, embedding_op, inputs_of(size, Role::Master, positions), kSums);
      check_parity(backend, Precision::Bf16, embedding_op, inputs_of(size, Role::Activation, positions), kRounded);
    }
  }
  for (const Shape& shape : kPositionShapes) {
    check_parity(backend, Precision::Fp32, positions_op, positions_inputs(shape, Role::Stream, Role::Weight), kSums);
    check_parity(backend, Precision::Bf16, positions_op, positions_inputs(shape, Role::Stream, Role::Weight), kSums);
    check_parity(backend, Precision::Bf16, positions_op, positions_inputs(shape, Role::Activation, Role::Master),
                 kRounded);
  }
}

TEST_CASE("embedding: looks rows up, and adds positions") {
  const TestDevice device;
  const Tensor table = device.tensor({3, 2}, DType::F32, {0, 1, 10, 11, 20, 21});
  const Tensor positions = device.tensor({4, 2}, DType::F32, {100, 0, 200, 0, 300, 0, 400, 0});
  const Tensor ids = device.tensor({2, 2}, DType::I32, {2, 0, 1, 2});
  const Tensor plain = embedding(device.ctx(), ids, table);
  CHECK(plain.shape() == Shape{2, 2, 2});
  CHECK(device.values(plain) == std::vector<double>{20, 21, 0, 1, 10, 11, 20, 21});
  CHECK(device.values(embedding(device.ctx(), ids, table, positions)) ==
        std::vector<double>{120, 21, 200, 1, 110, 11, 220, 21});
  const Tensor flat = device.tensor({3}, DType::I32, {1, 1, 0});
  CHECK(embedding(device.ctx(), flat, table).shape() == Shape{3, 2});
}

TEST_CASE("embedding: gradients match finite differences") {
  for (const Size& size : kSizes) {
    if (size.vocabulary > 1000) continue;
    for (const bool positions : {false, true}) {
      CAPTURE(size.tokens);
      CHECK(gradcheck(embedding_op, inputs_of(size, Role::Master, positions)) < 1e-7);
    }
  }
}

TEST_CASE("add_positions: gradients match finite differences") {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{3, 7, 33}, Shape{2, 5, 128}}) {
    CAPTURE(shape.str());
    CHECK(gradcheck(positions_op, positions_inputs(shape, Role::Stream, Role::Master)) < 1e-7);
  }
}

TEST_CASE("embedding: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("embedding: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("embedding: an id outside the table gives NaN and no gradient") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    HostTensor ids = integers({1, 4}, 3);
    ids.values = {1, -1, 3, 1};
    const std::vector<HostTensor> inputs{randn({3, 8}, Role::Master), ids};
    const OpResult result = run_op(device, embedding_op, inputs, {std::vector<double>(32, 1.0)});
    for (std::size_t i = 0; i < 32; ++i) CHECK(std::isnan(result.outputs[0][i]) == (i >= 8 && i < 24));
    for (std::size_t i = 0; i < 24; ++i) CHECK(result.gradients[0][i] == (i >= 8 && i < 16 ? 2.0 : 0.0));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

void check_start(Backend backend) {
  const TestDevice device(backend);
  const Context& ctx = device.ctx();
  const Tensor table = device.tensor({3, 2}, DType::F32, {0, 1, 10, 11, 20, 21});
  const Tensor positions = device.tensor({4, 2}, DType::F32, {100, 0, 200, 0, 300, 0, 400, 0});
  const Tensor ids = device.tensor({2, 2}, DType::I32, {2, 0, 1, 2});
  const Tensor x = device.tensor({2, 2, 2}, DType::F32, {1, 2, 3, 4, 5, 6, 7, 8});
  const auto start = [&](int value) { return device.tensor({1}, DType::I32, {static_cast<double>(value)}); };
  CHECK(device.values(embedding(ctx, ids, table, positions, start(2))) ==
        std::vector<double>{320, 21, 400, 1, 310, 11, 420, 21});
  CHECK(device.values(embedding(ctx, ids, table, positions, start(0))) ==
        device.values(embedding(ctx, ids, table, positions)));
  CHECK(device.values(add_positions(ctx, x, positions, start(1))) ==
        std::vector<double>{201, 2, 303, 4, 205, 6, 307, 8});
  for (const int outside : {3, -1}) {  // of the two positions one exists
    for (const std::vector<double>& y : {device.values(embedding(ctx, ids, table, positions, start(outside))),
                                         device.values(add_positions(ctx, x, positions, start(outside)))}) {
      for (std::size_t i = 0; i < 8; ++i) CHECK(std::isnan(y[i]) == (i / 2 % 2 == (outside == 3 ? 1U : 0U)));
    }
  }
}

TEST_CASE("embedding: positions start where the device says") { check_start(Backend::Cpu); }

TEST_CASE("embedding: positions start where the device says, CUDA matches CPU") {
  if (!skip_cuda()) check_start(Backend::Cuda);
}

TEST_CASE("embedding: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  CHECK_THROWS_WITH_AS(embedding(ctx, zeros({2, 3}), zeros({4, 8})),
                       doctest::Contains("embedding: ids are float32, expected int32"), ArgumentError);
  CHECK_THROWS_WITH_AS(embedding(ctx, zeros({2, 3}, DType::I32), zeros({8})),
                       doctest::Contains("the table is [8], expected [rows, D]"), ArgumentError);
  CHECK_THROWS_WITH_AS(embedding(ctx, zeros({2, 5}, DType::I32), zeros({4, 8}), zeros({4, 8})),
                       doctest::Contains("5 tokens, but the position table has 4 rows"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_positions(ctx, zeros({2, 82, 8}), zeros({80, 8})),
                       doctest::Contains("add_positions: 82 tokens, but the position table has 80 rows"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(embedding(ctx, zeros({2, 5}, DType::I32), zeros({4, 8}), {}, zeros({1}, DType::I32)),
                       doctest::Contains("a start is given, expected positions"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_positions(ctx, zeros({2, 5, 8}), zeros({5, 8}), zeros({1})),
                       doctest::Contains("add_positions: start is [1] float32, expected [1] int32"), ArgumentError);
  Tape tape;
  CHECK_THROWS_WITH_AS(add_positions(ctx.with_tape(tape), zeros({2, 5, 8}), zeros({5, 8}), zeros({1}, DType::I32)),
                       doctest::Contains("a tape is recording"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_positions(ctx, zeros({2, 5, 8}), zeros({5, 16})),
                       doctest::Contains("the position table is [5, 16], expected [rows, 8]"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_positions(ctx, zeros({5, 8}), zeros({5, 8})),
                       doctest::Contains("x is [5, 8], expected [B, T, D]"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
