#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/value_summary.h"
#include "train/step_watcher.h"

namespace graft::test {

/// A value that does not belong there, written on the device while a step runs, captured or not.
struct Fault {
  std::string tensor;            // StepWatcher::Watched::name: "gradient of read_in.weight", "mlp hidden"
  std::int64_t element = 0;      // taken modulo the tensor's size
  std::uint64_t first_step = 0;  // steps done before the first step that is hit
  std::uint64_t steps = 1;       // how many are
  double value = std::numeric_limits<double>::quiet_NaN();
  int ordinal = -1;  // which of the step tensors of that name; -1: all
};

/// What StepParts::intercept takes, with the faults in it. Each is written after every launch that is given its tensor,
/// so that it stands whoever writes to it.
[[nodiscard]] inline std::function<Context(const Context&)> injecting(const ParameterStore& params,
                                                                      std::vector<Fault> faults) {
  auto watcher =
      std::make_shared<StepWatcher>(params, [faults = std::move(faults)](const StepWatcher::Launched& launched) {
        for (const Fault& fault : faults) {
          for (const StepWatcher::Watched* tensor : launched.tensors) {
            if (tensor->name != fault.tensor || (fault.ordinal >= 0 && tensor->ordinal != fault.ordinal)) continue;
            poison(launched.inner, {tensor->view, fault.element % tensor->view.shape.elements(), fault.first_step,
                                    fault.first_step + fault.steps - 1, fault.value, launched.inner.state});
          }
        }
      });
  return [watcher](const Context& ctx) { return watcher->watch(ctx); };
}

}  // namespace graft::test
