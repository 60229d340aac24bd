#include "models/sequence_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tests/models/live_model.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

std::vector<std::byte> rows_before(const LiveModel& live, const Tensor& outputs, std::int64_t position) {
  const std::vector<std::byte> all = live.device.bytes(outputs);
  const std::int64_t batch = outputs.shape()[0];
  const std::size_t prompt = all.size() / static_cast<std::size_t>(batch);
  const std::size_t part = prompt / static_cast<std::size_t>(outputs.shape()[1]) * static_cast<std::size_t>(position);
  std::vector<std::byte> result;
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(b) * prompt);
    result.insert(result.end(), first, first + static_cast<std::ptrdiff_t>(part));
  }
  return result;
}

void check_causality(Backend backend, Precision precision, Positions positions) {
  constexpr std::int64_t kBatch = 3;
  constexpr std::int64_t kTokens = 70;  // across the tile of every attention kernel
  const LiveModel live(backend, precision, small_config("(AF)*2", positions), {5, 1, 0, kTokens});
  const DType dtype = live.device.ctx().compute_dtype();
  const HostTensor tokens = randn({kBatch, kTokens, 8});
  const Tensor before = live.model(live.device.ctx(), live.device.tensor(tokens.shape, dtype, tokens.values));
  for (const std::int64_t cut : {1, 2, 31, 64, 69}) {
    CAPTURE(cut);
    std::vector<double> changed = tokens.values;
    for (std::size_t i = 0; i < changed.size(); ++i) {
      const auto position = static_cast<std::int64_t>(i / 8) % kTokens;
      if (position >= cut) changed[i] = 3 * changed[i] + 10;
    }
    const Tensor after = live.model(live.device.ctx(), live.device.tensor(tokens.shape, dtype, changed));
    CHECK(rows_before(live, before, cut) == rows_before(live, after, cut));
    CHECK(rows_before(live, before, cut + 1) != rows_before(live, after, cut + 1));
  }
}

TEST_CASE("model: later tokens leave earlier outputs as they are, bit for bit") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    CAPTURE(name_of(precision));
    check_causality(Backend::Cpu, precision, Positions::Learned);
    check_causality(Backend::Cpu, precision, Positions::None);
  }
}

TEST_CASE("model: CUDA: later tokens leave earlier outputs as they are, bit for bit") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    CAPTURE(name_of(precision));
    check_causality(Backend::Cuda, precision, Positions::Learned);
  }
}

TEST_CASE("model: outputs do not depend on what else is in the batch") {
  const LiveModel live(Backend::Cpu, Precision::Fp64, small_config(), {5, 1, 0, 12});
  const HostTensor tokens = randn({4, 12, 8});
  const std::vector<double> all = live.device.values(live.model(live.device.ctx(), live.device.tensor(tokens)));
  const std::vector<double> third(tokens.values.begin() + 2 * 12 * 8, tokens.values.begin() + 3 * 12 * 8);
  const std::vector<double> alone =
      live.device.values(live.model(live.device.ctx(), live.device.tensor({1, 12, 8}, DType::F64, third)));
  for (std::size_t i = 0; i < alone.size(); ++i) {
    CHECK(alone[i] == doctest::Approx(all[2 * alone.size() + i]).epsilon(1e-12));
  }
}

TEST_CASE("model: CUDA matches CPU") {
  if (skip_cuda()) return;
  const ModelShape shape{5, 1, 0, 70};
  const HostTensor tokens = randn({3, 70, 8});
  const LiveModel reference(Backend::Cpu, Precision::Fp64, small_config(), shape);
  const std::vector<double> expected =
      reference.device.values(reference.model(reference.device.ctx(), reference.device.tensor(tokens)));
  double size = 0;
  for (const double value : expected) size = std::max(size, std::abs(value));
  // Four blocks deep; the units of rounding are 6e-8 (fp32), 5e-4 (tf32) and 4e-3 (bf16), times a few.
  for (const auto& [precision, tolerance] :
       {std::pair{Precision::Fp32, 5e-6}, {Precision::Tf32, 4e-3}, {Precision::Bf16, 4e-2}}) {
    const LiveModel live(Backend::Cuda, precision, small_config(), shape);
    const std::vector<double> values = live.device.values(live.model(
        live.device.ctx(), live.device.tensor(tokens.shape, live.device.ctx().compute_dtype(), tokens.values)));
    double worst = 0;
    for (std::size_t i = 0; i < values.size(); ++i) worst = std::max(worst, std::abs(values[i] - expected[i]));
    CAPTURE(name_of(precision));
    CHECK(worst / size < tolerance);
  }
}

TEST_CASE("model: shapes of vectors and of token ids") {
  const LiveModel vectors(Backend::Cpu, Precision::Fp32, small_config(), {5, 1, 0, 16});
  const Tensor tokens = vectors.device.tensor({2, 9, 8}, DType::F32, std::vector<double>(2 * 9 * 8, 0.5));
  CHECK(vectors.model(vectors.device.ctx(), tokens).shape() == Shape{2, 9, 8});
  CHECK_THROWS_WITH_AS(static_cast<void>(vectors.model.logits(vectors.device.ctx(), tokens)),
                       doctest::Contains("reads vectors"), ArgumentError);
  const Tensor narrow = vectors.device.tensor({2, 9, 5}, DType::F32, std::vector<double>(2 * 9 * 5, 0.5));
  CHECK_THROWS_WITH_AS(static_cast<void>(vectors.model(vectors.device.ctx(), narrow)),
                       doctest::Contains("expected [B, T, 8]"), ArgumentError);

  const LiveModel ids(Backend::Cpu, Precision::Fp64, small_config(), {0, 0, 11, 16});
  const Tensor input = ids.device.tensor(integers({2, 9}, 11));
  CHECK(ids.model.logits(ids.device.ctx(), input).shape() == Shape{2, 9, 16});
  CHECK_THROWS_WITH_AS(static_cast<void>(ids.model(ids.device.ctx(), input)), doctest::Contains("reads token ids"),
                       ArgumentError);
  const Tensor too_long = ids.device.tensor(integers({1, 17}, 11));
  CHECK_THROWS_AS(static_cast<void>(ids.model.logits(ids.device.ctx(), too_long)), ArgumentError);
}

TEST_CASE("model: without a position table the order of past tokens does not matter to attention") {
  const LiveModel live(Backend::Cpu, Precision::Fp64, small_config("A", Positions::None), {5, 1, 0, 6});
  CHECK(live.store.find("positions.weight") == nullptr);
  HostTensor tokens = randn({1, 6, 8});
  const std::vector<double> before = live.device.values(live.model(live.device.ctx(), live.device.tensor(tokens)));
  std::swap_ranges(tokens.values.begin(), tokens.values.begin() + 8, tokens.values.begin() + 16);
  const std::vector<double> after = live.device.values(live.model(live.device.ctx(), live.device.tensor(tokens)));
  CHECK(after[5 * 8] == doctest::Approx(before[5 * 8]).epsilon(1e-13));
  CHECK(after[1 * 8] != doctest::Approx(before[1 * 8]).epsilon(1e-6));
}

TEST_CASE("model: what cannot be built is refused") {
  ParameterStore store;
  ModelConfig config = small_config();
  config.heads = 5;
  CHECK_THROWS_WITH_AS(SequenceModel(store, config, {5, 1, 0, 16}),
                       doctest::Contains("model.heads = 5 does not divide model.width = 32"), ArgumentError);
  ParameterStore second;
  config = small_config();
  config.position_rows = 15;
  CHECK_THROWS_WITH_AS(SequenceModel(second, config, {5, 1, 0, 16}),
                       doctest::Contains("model.position_rows = 15, expected at least the 16 tokens"), ArgumentError);
  ParameterStore third;
  CHECK_THROWS_AS(SequenceModel(third, small_config(), {0, 1, 0, 16}), ArgumentError);
}

}  // namespace
}  // namespace graft::test
