#include "ops/point_scores.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/error.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"
#include "tests/support/random.h"

namespace graft::test {
namespace {

TEST_CASE("point_scores: squared errors are sums over columns, masked points are marked") {
  const TestDevice device(Backend::Cpu, Precision::Fp64, 2);
  const HostTensor predictions = randn({2, 7, 8});
  const HostTensor targets = randn({2, 3, 4}, Role::Stream, 3);
  const std::vector<double> mask = {1, 0, 1, 1, 1, 0};
  SquaredErrorOptions options;
  options.columns = 3;
  options.position_stride = 2;
  options.position_offset = 1;
  const std::vector<double> scores =
      device.values(point_scores(device.ctx(), ScoreKind::SquaredError, device.tensor(predictions),
                                 device.tensor(targets), device.tensor({2, 3}, DType::U8, mask), options));
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t i = 0; i < 3; ++i) {
      double sum = 0;
      for (std::size_t c = 0; c < 3; ++c) {
        sum += std::pow(predictions.values[(b * 7 + 2 * i + 1) * 8 + c] - targets.values[(b * 3 + i) * 4 + c], 2);
      }
      CHECK(scores[b * 3 + i] == doctest::Approx(mask[b * 3 + i] == 0 ? kNotScored : sum).epsilon(1e-14));
    }
  }
}

TEST_CASE("point_scores: means over columns, which may lie anywhere") {
  const TestDevice device(Backend::Cpu, Precision::Fp64, 2);
  const HostTensor predictions = randn({2, 7, 8});
  const HostTensor targets = randn({2, 3, 4}, Role::Stream, 3);
  const SquaredErrorOptions options{.columns = 2, .position_stride = 2, .first_column = 5, .target_column = 1};
  const std::vector<double> scores = device.values(point_scores(
      device.ctx(), ScoreKind::MeanSquaredError, device.tensor(predictions), device.tensor(targets), {}, options));
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t i = 0; i < 3; ++i) {
      double sum = 0;
      for (std::size_t c = 0; c < 2; ++c) {
        sum += std::pow(predictions.values[(b * 7 + 2 * i) * 8 + 5 + c] - targets.values[(b * 3 + i) * 4 + 1 + c], 2);
      }
      CHECK(scores[b * 3 + i] == doctest::Approx(sum / 2).epsilon(1e-14));
    }
  }
}

TEST_CASE("point_scores: signs and equality") {
  const TestDevice device(Backend::Cpu, Precision::Fp64, 1);
  const Tensor predictions = device.tensor({1, 5, 1}, DType::F64, {0.3, -2, 0, 4, -1});
  const Tensor targets = device.tensor({1, 5, 1}, DType::F64, {1, 1, -1, 4, -1});
  const auto scores = [&](ScoreKind kind) {
    return device.values(point_scores(device.ctx(), kind, predictions, targets));
  };
  CHECK(scores(ScoreKind::SignAgreement) == std::vector<double>{1, 0, 0, 1, 1});  // zero agrees with no sign
  CHECK(scores(ScoreKind::Equality) == std::vector<double>{0, 0, 0, 1, 1});
}

TEST_CASE("point_scores: what does not fit is refused") {
  const TestDevice device(Backend::Cpu, Precision::Fp32, 1);
  const Tensor predictions = device.tensor(randn({2, 6, 8}));
  const Tensor targets = device.tensor(randn({2, 3, 2}, Role::Stream, 3));
  CHECK_THROWS_WITH_AS(static_cast<void>(point_scores(device.ctx(), ScoreKind::Equality, predictions, targets)),
                       doctest::Contains("2 columns, expected 1"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(point_scores(device.ctx(), ScoreKind::SquaredError, predictions, targets, {},
                                                      {.position_stride = 4})),
                       doctest::Contains("point_scores: target 2 is predicted at token 8"), ArgumentError);
}

TEST_CASE("point_scores: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    for (const ScoreKind kind :
         {ScoreKind::SquaredError, ScoreKind::SignAgreement, ScoreKind::Equality, ScoreKind::MeanSquaredError}) {
      const bool several = kind == ScoreKind::SquaredError || kind == ScoreKind::MeanSquaredError;
      const std::int64_t columns = several ? 5 : 1;
      const auto scores = [&](Backend backend) {
        const TestDevice device(backend, precision);
        return device.values(
            point_scores(device.ctx(), kind, device.tensor(randn({37, 14, 8})),
                         device.tensor(randn({37, 7, columns + 1}, Role::Stream, 2)), {},
                         {.columns = columns, .position_stride = 2, .first_column = 2, .target_column = 1}));
      };
      const std::vector<double> expected = scores(Backend::Cpu);
      const std::vector<double> got = scores(Backend::Cuda);
      REQUIRE(got.size() == expected.size());
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-5));
    }
  }
}

}  // namespace
}  // namespace graft::test
