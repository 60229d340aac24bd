#pragma once

#include <cstring>
#include <string_view>

#include "engine/step_state.h"
#include "engine/stream.h"
#include "engine/tensor.h"
#include "tests/support/device.h"

namespace graft::test {

/// A step state in the memory of a test device, known to the device's context.
class DeviceState {
 public:
  explicit DeviceState(TestDevice& device, const StepState& state = {})
      : device_(device),
        memory_(device.ctx().empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "step state")) {
    device.ctx().state = static_cast<StepState*>(memory_.mutable_view().data);
    write(state);
  }
  void write(const StepState& state) {
    device_.stream().upload(memory_.mutable_view().data, &state, sizeof(state), "step state");
  }
  [[nodiscard]] StepState read() const {
    StepState state;
    device_.stream().download(&state, memory_.view().data, sizeof(state), "step state");
    return state;
  }

 private:
  TestDevice& device_;
  Tensor memory_;
};

}  // namespace graft::test
