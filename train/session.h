#pragma once

#include <cstdint>
#include <memory>

#include "engine/runtime.h"
#include "engine/step_state.h"
#include "train/checkpoint.h"
#include "train/experiment.h"

namespace graft {

/// An experiment on a device: stream, memory, parameters, step state.
class Session {
 public:
  /// Opens the device and takes memory for the parameters (and the optimiser's moments where `training`). Throws
  /// EnvironmentError without the device, ArgumentError where it does not offer the precision.
  Session(Experiment& experiment, Device device, const RuntimeOptions& options, bool training);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const Context& ctx() const { return ctx_; }
  [[nodiscard]] Runtime& runtime() const { return *runtime_; }
  [[nodiscard]] const std::shared_ptr<AddressRange>& range() const { return range_; }
  [[nodiscard]] Experiment& experiment() { return experiment_; }
  [[nodiscard]] const Experiment& experiment() const { return experiment_; }

  /// Step state in device memory; one for training, more for evaluations.
  class State {
   public:
    State(const Context& ctx, const char* name);
    [[nodiscard]] StepState* pointer() const { return tensor_.mutable_view().as<StepState>(); }
    void write(const Context& ctx, const StepState& state) const;
    [[nodiscard]] StepState read(const Context& ctx) const;

   private:
    Tensor tensor_;
  };
  [[nodiscard]] const State& state() const { return *state_; }

  /// Fresh weights from the seed, step 0.
  void initialize();
  /// Weights, moments and step state from a checkpoint. Throws DataError where names or shapes differ,
  /// or no run can have been in that step state.
  void restore(const CheckpointData& checkpoint, bool with_optimizer);
  /// The state of the run on the host, copied; `extra` is merged into state.json. See HostSnapshot for training.
  [[nodiscard]] CheckpointData snapshot(const nlohmann::json& extra) const;

  /// Worker threads as asked for; 0: all.
  [[nodiscard]] int threads() const { return threads_; }

 private:
  Experiment& experiment_;
  int threads_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Stream> stream_;
  std::shared_ptr<AddressRange> range_;
  Context ctx_;
  std::unique_ptr<State> state_;
};

/// A session for training that has the memory of the longest step, which `memory` plans. Throws as the constructor
/// does; an OutOfMemoryError says what would fit, knowing that `jobs` runs share the device.
[[nodiscard]] std::unique_ptr<Session> open_training_session(Experiment& experiment, const MemoryReport& memory,
                                                             Device device, const RuntimeOptions& options,
                                                             int jobs = 1);

/// The device that "cpu", "cuda", "cuda:1" or "auto" means; auto is a usable GPU unless the precision is fp64, else the
/// CPU. Throws ArgumentError on anything else.
[[nodiscard]] Device parse_device(std::string_view text, Precision precision);

}  // namespace graft
