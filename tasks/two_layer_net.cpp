#include "tasks/two_layer_net.h"

#include <xxhash.h>

#include <cstring>
#include <utility>

#include "engine/context.h"
#include "engine/cpu_runtime.h"
#include "engine/parameter_store.h"
#include "engine/philox.h"
#include "engine/require.h"
#include "engine/stream.h"
#include "engine/tape.h"
#include "ops/activation.h"
#include "ops/adam.h"
#include "ops/linear.h"
#include "ops/schedule.h"
#include "ops/squared_error.h"
#include "tasks/baselines.h"

namespace graft {

struct TwoLayerNet::Engine {
  Engine(std::int64_t input_dim, const Options& net_options)
      : dim(input_dim),
        options(net_options),
        runtime(make_cpu_runtime({.threads = 1})),
        stream(runtime->make_stream()),
        first_weight(store.add("first", "weight", {options.hidden, dim}, init::uniform_fan_in(dim))),
        first_bias(store.add("first", "bias", {options.hidden}, init::uniform_fan_in(dim))),
        second_weight(store.add("second", "weight", {1, options.hidden}, init::uniform_fan_in(options.hidden))),
        second_bias(store.add("second", "bias", {1}, init::uniform_fan_in(options.hidden))) {
    schedule.base = options.learning_rate;
    ctx.stream = stream.get();
    ctx.memory = runtime->make_pool();
    ctx.run_memory = ctx.memory;
    ctx.precision = options.precision;
    ctx.training = true;
    state = ctx.empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "state of the two-layer net");
    ctx.state = state.mutable_view().as<StepState>();
    store.allocate(ctx);
  }

  [[nodiscard]] Tensor outputs(const Context& c, const Tensor& x) const {  // x [1, rows, dim]
    const Tensor hidden = linear(c, x, first_weight.tensor(c), first_bias.tensor(c));
    return linear(c, activation(c, hidden, Activation::Relu), second_weight.tensor(c), second_bias.tensor(c));
  }

  [[nodiscard]] Tensor upload(std::span<const float> values, const Shape& shape) const {
    Tensor tensor = ctx.empty(shape, ctx.compute_dtype(), "points of the two-layer net");
    if (tensor.dtype() == DType::F32) {
      stream->upload(tensor.mutable_view().data, values.data(), tensor.bytes(), "points");
    } else {
      const std::vector<double> wide(values.begin(), values.end());
      stream->upload(tensor.mutable_view().data, wide.data(), tensor.bytes(), "points");
    }
    return tensor;
  }

  void step(const Tensor& x, const Tensor& y) {
    store.begin_gradients();
    Tape tape;
    const Context recording = ctx.with_tape(tape);
    const Tensor loss = squared_error(recording, outputs(recording, x), y);
    static_cast<void>(tape.backward(ctx, loss, &store));
    store.finish_gradients(ctx);
    adam(ctx, store, adam_options);
    advance(ctx, schedule, adam_options.beta1, adam_options.beta2);
  }

  std::int64_t dim;
  Options options;
  AdamOptions adam_options;
  Schedule schedule;
  std::unique_ptr<Runtime> runtime;
  std::unique_ptr<Stream> stream;
  Context ctx;
  Tensor state;
  ParameterStore store;
  Param first_weight, first_bias, second_weight, second_bias;
  std::uint64_t seed = 0;
};

TwoLayerNet::TwoLayerNet(std::int64_t dim, const Options& options) {
  require(dim >= 1 && options.hidden >= 1 && options.steps >= 0 && options.batch >= 1,
          "two-layer net: {} inputs, {} hidden units, {} steps on batches of {}, expected at least one of each", dim,
          options.hidden, options.steps, options.batch);
  require(options.precision == Precision::Fp32 || options.precision == Precision::Fp64,
          "two-layer net: precision {}, expected fp32 or fp64", name_of(options.precision));
  engine_ = std::make_unique<Engine>(dim, options);
}

TwoLayerNet::~TwoLayerNet() = default;

void TwoLayerNet::start(std::uint64_t seed) {
  Engine& engine = *engine_;
  engine.seed = seed;
  engine.store.initialize(engine.ctx, seed);
  for (const Tensor& moments : {engine.store.first_moments(), engine.store.second_moments()}) {
    engine.stream->zero(moments.mutable_view().data, moments.bytes());
  }
  const StepState fresh = initial_state(seed, engine.schedule, engine.adam_options.beta1, engine.adam_options.beta2);
  engine.stream->upload(engine.ctx.state, &fresh, sizeof(fresh), "state of the two-layer net");
}

void TwoLayerNet::train(std::span<const float> xs, std::span<const float> ys) {
  Engine& engine = *engine_;
  const auto points = static_cast<std::int64_t>(ys.size());
  const auto dim = static_cast<std::size_t>(engine.dim);
  require(points >= 1 && xs.size() == ys.size() * dim, "two-layer net: {} inputs for {} points, expected {} each",
          xs.size(), points, dim);
  if (points <= engine.options.batch) {
    const Tensor x = engine.upload(xs, {1, points, engine.dim});
    const Tensor y = engine.upload(ys, {1, points, 1});
    for (std::int64_t step = 0; step < engine.options.steps; ++step) engine.step(x, y);
    return;
  }
  const auto batch = static_cast<std::size_t>(engine.options.batch);
  std::vector<std::size_t> order(ys.size());
  std::vector<float> some_xs(batch * dim), some_ys(batch);
  for (std::int64_t step = 0; step < engine.options.steps; ++step) {
    // The start of a shuffle: `batch` different points, each set as likely as any other.
    const Draw draw{engine.seed, RandomDomain::Train, static_cast<std::uint64_t>(step), 0};
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (std::size_t i = 0; i < batch; ++i) {
      std::swap(order[i],
                order[i + draw.below(static_cast<std::uint32_t>(order.size() - i), 0, static_cast<std::uint32_t>(i))]);
      std::memcpy(&some_xs[i * dim], &xs[order[i] * dim], dim * sizeof(float));
      some_ys[i] = ys[order[i]];
    }
    engine.step(engine.upload(some_xs, {1, engine.options.batch, engine.dim}),
                engine.upload(some_ys, {1, engine.options.batch, 1}));
  }
}

double TwoLayerNet::operator()(std::span<const float> x) const {
  const Engine& engine = *engine_;
  require(x.size() == static_cast<std::size_t>(engine.dim), "two-layer net: {} inputs, expected {}", x.size(),
          engine.dim);
  const Tensor y = engine.outputs(engine.ctx, engine.upload(x, {1, 1, engine.dim}));
  double wide = 0;
  float narrow = 0;
  void* const to = y.dtype() == DType::F32 ? static_cast<void*>(&narrow) : static_cast<void*>(&wide);
  engine.stream->download(to, y.view().data, y.bytes(), "prediction");
  return y.dtype() == DType::F32 ? double{narrow} : wide;
}

std::vector<double> TwoLayerNet::parameter(std::string_view name) const {
  const ParameterStore::Entry* entry = engine_->store.find(name);
  require(entry != nullptr, "two-layer net: no parameter '{}'", name);
  return engine_->store.read(engine_->ctx, *entry, ParameterStore::Buffer::Weights);
}

namespace {

void predict_two_layer_net(const PromptPoints& prompt, std::span<double> predictions) {
  TwoLayerNet net(prompt.dim);
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    if (prompt.is_stopped()) return;
    double prediction = 0;
    if (i > 0 && prompt.is_wanted(i)) {
      const std::span<const float> xs = prompt.first_xs(i), ys = prompt.first_ys(i);
      // Another start for every prompt and position, and yet a function of the points alone.
      net.start(XXH3_64bits_withSeed(ys.data(), ys.size_bytes(), XXH3_64bits(xs.data(), xs.size_bytes())));
      net.train(xs, ys);
      prediction = net(prompt.x(i));
    }
    predictions[static_cast<std::size_t>(i)] = prediction;
  }
}

const RegisterBaseline registered{{"two_layer_net", predict_two_layer_net, true}};

}  // namespace
}  // namespace graft
