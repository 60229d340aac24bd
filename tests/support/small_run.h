#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/tape.h"
#include "ops/activation.h"
#include "ops/adam.h"
#include "ops/clip.h"
#include "ops/linear.h"
#include "ops/schedule.h"
#include "ops/squared_error.h"
#include "tests/support/device_state.h"

namespace graft::test {

/// A complete little run: two linear layers with a GELU between them, fitted to fixed data. What a step does depends on
/// the step state alone, so it can be captured.
class SmallRun {
 public:
  explicit SmallRun(Backend backend, Precision precision = Precision::Fp32, std::uint64_t seed = 1, int threads = 2,
                    std::int64_t batch = 48)
      : device_(backend, precision, threads),
        in_(store_.add("in", "weight", {kHidden, kWidth}, init::normal(0.4))),
        in_bias_(store_.add("in", "bias", {kHidden}, init::uniform(0.1), {.decay = false})),
        out_(store_.add("out", "weight", {kOut, kHidden}, init::normal(0.2))),
        state_(device_, initial_state(seed, kSchedule, kAdam.beta1, kAdam.beta2)),
        inputs_(device_.tensor(constant(randn({batch, 1, kWidth}, Role::Activation, seed)))),
        targets_(device_.tensor(constant(randn({batch, 1, kOut}, Role::Stream, seed + 1)))),
        loss_(device_.tensor({}, device_.ctx().stream_dtype(), {0})) {
    store_.allocate(device_.ctx());
    store_.initialize(device_.ctx(), seed);
  }

  /// One training step.
  void train(const Context& ctx) {
    store_.begin_gradients();
    Tape tape;
    const Context recording = ctx.with_tape(tape);
    const Tensor loss = forward(recording);
    static_cast<void>(tape.backward(ctx, loss, &store_));
    store_.finish_gradients(ctx);
    clip_by_global_norm(ctx, store_.gradients(), 1.0);
    adam(ctx, store_, kAdam);
    advance(ctx, kSchedule, kAdam.beta1, kAdam.beta2);
  }
  /// The loss alone; changes no weight.
  void evaluate(const Context& ctx) { static_cast<void>(forward(ctx)); }

  [[nodiscard]] TestDevice& device() { return device_; }
  [[nodiscard]] ParameterStore& store() { return store_; }
  /// All that a step changes, bit for bit.
  [[nodiscard]] std::vector<std::byte> fingerprint() const {
    std::vector<std::byte> all;
    for (const Tensor& tensor :
         {store_.weights(), store_.gradients(), store_.first_moments(), store_.second_moments(), loss_}) {
      const std::vector<std::byte> bytes = device_.bytes(tensor);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  [[nodiscard]] double loss() const { return device_.values(loss_)[0]; }
  [[nodiscard]] std::uint64_t steps() const { return state_.read().step; }

 private:
  static constexpr std::int64_t kWidth = 16;
  static constexpr std::int64_t kHidden = 40;
  static constexpr std::int64_t kOut = 8;
  static constexpr AdamOptions kAdam{0.9, 0.99, 1e-8, 0.01};
  static constexpr Schedule kSchedule{ScheduleKind::Cosine, 1e-2, 3, 50, 0.1, 1};

  Tensor forward(const Context& ctx) {
    const Tensor hidden =
        activation(ctx, linear(ctx, inputs_, in_.tensor(ctx), in_bias_.tensor(ctx)), Activation::GeluTanh);
    Tensor loss = squared_error(ctx, linear(ctx, hidden, out_.tensor(ctx)), targets_);
    ctx.stream->copy(loss_.mutable_view().data, loss.view().data, loss.bytes());
    return loss;
  }

  TestDevice device_;
  ParameterStore store_;
  Param in_, in_bias_, out_;
  DeviceState state_;
  Tensor inputs_, targets_, loss_;
};

}  // namespace graft::test
