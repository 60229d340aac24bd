// Gradients of a whole model, from the loss to every parameter.

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/tape.h"
#include "ops/cross_entropy.h"
#include "ops/squared_error.h"
#include "tests/models/live_model.h"
#include "tests/support/random.h"

namespace graft::test {
namespace {

using Loss = std::function<Tensor(const Context&, const SequenceModel&)>;

double value_of(const LiveModel& live, const Loss& loss) {
  return live.device.values(loss(live.device.ctx(), live.model)).at(0);
}

using ParameterValues = std::vector<std::vector<double>>;  // one vector an entry of the store

void write(LiveModel& live, const ParameterValues& values) {
  const auto& entries = live.store.entries();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    live.store.write(live.device.ctx(), entries[i], ParameterStore::Buffer::Weights, values[i]);
  }
}

/// d loss / d (step along `direction`): two central differences, extrapolated.
double difference_along(LiveModel& live, const Loss& loss, const ParameterValues& at,
                        const ParameterValues& direction) {
  const auto moved = [&](double step) {
    ParameterValues values = at;
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (std::size_t j = 0; j < values[i].size(); ++j) values[i][j] += step * direction[i][j];
    }
    write(live, values);
    return value_of(live, loss);
  };
  const auto central = [&](double step) { return (moved(step) - moved(-step)) / (2 * step); };
  constexpr double kStep = 2e-4;
  const double result = (4 * central(kStep / 2) - central(kStep)) / 3;
  write(live, at);
  return result;
}

/// Largest relative error of the gradient's projections on random directions: of all parameters at once, then of each
/// one by itself. Errors are relative to |gradient| |direction| / sqrt(elements), the size a random projection has.
double model_gradient_error(LiveModel& live, const Loss& loss) {
  const Context& ctx = live.device.ctx();
  const auto& entries = live.store.entries();
  ParameterValues at;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    // Away from the small weights of initialisation, where half of the gradients would be nearly zero.
    at.push_back(randn(entries[i].shape, Role::Master, 100 + i, 0.3).values);
    if (entries[i].name.ends_with("gain")) {
      for (double& value : at.back()) value += 1;
    }
  }
  write(live, at);

  live.store.begin_gradients();
  {
    Tape tape;
    const Tensor result = loss(ctx.with_tape(tape), live.model);
    static_cast<void>(tape.backward(ctx, result, &live.store));
  }
  live.store.finish_gradients(ctx);

  double worst = 0;
  const auto check = [&](const std::string& what, const ParameterValues& direction) {
    double product = 0;
    double gradient_square = 0;
    double direction_square = 0;
    double elements = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::vector<double> gradient = live.store.read(ctx, entries[i], ParameterStore::Buffer::Gradients);
      for (std::size_t j = 0; j < gradient.size(); ++j) {
        product += gradient[j] * direction[i][j];
        if (direction[i][j] == 0) continue;
        gradient_square += gradient[j] * gradient[j];
        direction_square += direction[i][j] * direction[i][j];
        elements += 1;
      }
    }
    CAPTURE(what);
    CHECK(gradient_square > 0);
    const double size = std::sqrt(gradient_square * direction_square / elements);
    const double error = std::abs(difference_along(live, loss, at, direction) - product) / size;
    if (error > 1e-7) MESSAGE(what << ": relative error " << error);
    worst = std::max(worst, error);
  };
  ParameterValues zero;
  for (const std::vector<double>& values : at) zero.emplace_back(values.size(), 0.0);
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    ParameterValues direction;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      direction.push_back(randn(entries[i].shape, Role::Master, 1000 * (seed + 1) + i).values);
    }
    check("all parameters", direction);
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    ParameterValues direction = zero;
    direction[i] = randn(entries[i].shape, Role::Master, 5000 + i).values;
    check(entries[i].name, direction);
  }
  return worst;
}

TEST_CASE("model: gradients of all parameters match finite differences") {
  struct Variant {
    const char* pattern;
    Positions positions;
  };
  for (const Variant& variant :
       {Variant{"(AF)*2", Positions::Learned}, {"AF", Positions::None}, {"FAA", Positions::Learned}}) {
    CAPTURE(variant.pattern);
    ModelConfig config = small_config(variant.pattern, variant.positions);
    config.width = 12;
    config.heads = 3;
    config.mlp_ratio = 2;
    LiveModel live(Backend::Cpu, Precision::Fp64, config, {3, 1, 0, 10});
    HostTensor tokens = randn({2, 10, 8});
    for (std::size_t i = 0; i < tokens.values.size(); ++i) {
      if (i % 8 >= 3) tokens.values[i] = 0;  // padding columns
    }
    const Tensor input = live.device.tensor(tokens);
    const Tensor targets = live.device.tensor(randn({2, 5, 1}, Role::Stream, 3));
    const double error = model_gradient_error(live, [&](const Context& ctx, const SequenceModel& model) {
      return squared_error(ctx, model(ctx, input), targets, {}, {.columns = 1, .position_stride = 2});
    });
    CHECK(error < 1e-7);
  }
}

/// As small_config, with what the models of the retrieval study are made of.
ModelConfig rotary_config(const char* pattern, Positions positions, NormKind norm) {
  ModelConfig config = small_config(pattern, positions);
  config.width = 16;
  config.heads = 2;
  config.mlp_width = 20;
  config.gelu_erf = true;
  config.rotary = 0.5;
  config.state = 3;
  config.norm = norm;
  return config;
}

TEST_CASE("model: gradients through every residual form match finite differences") {
  for (const char* pattern : {"[AF]*2", "M[AF]M", "[M|AF]*2", "[AF|M2]*2", "[FA|M]A", "M2"}) {
    for (const Residual residual : {Residual::Clean, Residual::Released}) {
      for (const NormKind norm : {NormKind::LayerNorm, NormKind::RmsNorm}) {
        CAPTURE(pattern);
        CAPTURE(residual == Residual::Released);
        CAPTURE(norm == NormKind::RmsNorm);
        ModelConfig config = rotary_config(pattern, Positions::None, norm);
        config.residual = residual;
        config.settings.set("model.head_dim", std::int64_t{8});
        LiveModel live(Backend::Cpu, Precision::Fp64, config, {3, 1, 0, 10});
        HostTensor tokens = randn({2, 10, 8});
        for (std::size_t i = 0; i < tokens.values.size(); ++i) {
          if (i % 8 >= 3) tokens.values[i] = 0;
        }
        const Tensor input = live.device.tensor(tokens);
        const Tensor targets = live.device.tensor(randn({2, 5, 1}, Role::Stream, 3));
        CHECK(model_gradient_error(live, [&](const Context& ctx, const SequenceModel& model) {
                return squared_error(ctx, model(ctx, input), targets, {}, {.columns = 1, .position_stride = 2});
              }) < 1e-7);
      }
    }
  }
}

TEST_CASE("model: gradients of the token path as trained match finite differences") {
  for (const bool tied : {true, false}) {
    for (const Positions positions : {Positions::None, Positions::Learned}) {
      CAPTURE(tied);
      CAPTURE(positions == Positions::Learned);
      ModelConfig config = rotary_config("M[AF]", positions, NormKind::RmsNorm);
      config.tied = tied;
      config.vocabulary_multiple = tied ? 8 : 1;
      LiveModel live(Backend::Cpu, Precision::Fp64, config, {0, 0, 11, 9});
      CHECK(live.model.output_columns() == (tied ? 16 : 11));
      const Tensor ids = live.device.tensor(integers({2, 9}, 11));
      const Tensor scored = live.device.tensor({2, 3}, DType::I32, {2, 5, 8, 0, 5, 7});
      const Tensor labels =
          live.device.tensor({2, 3}, DType::I32, {4, 10, 0, 7, static_cast<double>(kIgnoredLabel), 3});
      CHECK(model_gradient_error(live, [&](const Context& ctx, const SequenceModel& model) {
              return cross_entropy(ctx, model.logits(ctx, ids, scored), labels, model.output_columns());
            }) < 1e-7);
    }
  }
}

TEST_CASE("model: with its gate closed a two-stream hybrid is a stack of its first stream") {
  const auto outputs = [](const char* pattern) {
    ModelConfig config = small_config(pattern, Positions::None);
    config.norm = NormKind::RmsNorm;
    LiveModel live(Backend::Cpu, Precision::Fp64, config, {5, 1, 0, 12});
    // the same weights, whatever other parameters there are
    for (const ParameterStore::Entry& entry : live.store.entries()) {
      if (entry.name.ends_with(".gate")) continue;
      std::uint64_t seed = 1;
      std::string name = entry.name;
      if (const std::size_t at = name.find("norm_mamba"); at != std::string::npos) name.replace(at, 10, "norm");
      for (const char c : name) seed = seed * 131 + static_cast<std::uint64_t>(c);
      live.store.write(live.device.ctx(), entry, ParameterStore::Buffer::Weights,
                       randn(entry.shape, Role::Master, seed, 0.2).values);
    }
    return live.device.values(live.model(live.device.ctx(), live.device.tensor(randn({2, 12, 8}))));
  };
  const std::vector<double> plain = outputs("M*3");
  const std::vector<double> gated = outputs("[M|AF]*3");
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(gated[i] == doctest::Approx(plain[i]).epsilon(1e-12));
}

TEST_CASE("model: padding of a parameter stays without gradient") {
  LiveModel live(Backend::Cpu, Precision::Fp64, small_config(), {3, 1, 0, 10});
  const Context& ctx = live.device.ctx();
  const Tensor input = live.device.tensor(randn({2, 10, 8}));  // columns that should be zero are not
  live.store.begin_gradients();
  Tape tape;
  const Context recording = ctx.with_tape(tape);
  const Tensor loss = squared_error(recording, live.model(recording, input), live.device.tensor(randn({2, 5, 1})), {},
                                    {.columns = 1, .position_stride = 2});
  static_cast<void>(tape.backward(ctx, loss, &live.store));
  live.store.finish_gradients(ctx);
  const ParameterStore::Entry* out = live.store.find("read_out.weight");
  REQUIRE(out != nullptr);
  CHECK(out->stored == Shape{8, 32});
  const std::vector<double> gradients = live.device.values(live.store.gradients());
  for (std::int64_t i = 32; i < 8 * 32; ++i) CHECK(gradients[static_cast<std::size_t>(out->offset + i)] == 0);
}

}  // namespace
}  // namespace graft::test
