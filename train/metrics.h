#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/runtime.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

/// What a step leaves behind, all doubles on the device.
struct MetricsRow {
  double step = 0;  // steps done, this one included
  double loss = 0;
  double gradient_norm = 0;
  double learning_rate = 0;
  double skipped = 0;              // updates left out so far
  double skipped_in_row = 0;       // of them, since the last that was applied
  double first_bad = kNothingBad;  // StepState::first_bad of this step
  [[nodiscard]] bool was_skipped() const { return skipped_in_row > 0; }
};

/// The row of the step that `state` is about to end.
[[nodiscard]] GRAFT_HD inline MetricsRow metrics_row(const StepState& state, double loss) {
  return {static_cast<double>(state.step + 1),
          loss,
          state.gradient_norm,
          state.learning_rate,
          static_cast<double>(state.skipped),
          static_cast<double>(state.skipped_in_row),
          static_cast<double>(state.first_bad)};
}

struct WriteMetrics {
  ConstView loss;  // [1] float32 or float64
  const StepState* state;
  MetricsRow* ring;
  std::int64_t capacity;
};
/// Copies rows of a batch into a buffer: row state.step * batch + b of `to` gets row b of `from`.
struct PlaceRows {
  ConstView from;  // [batch, N]
  View to;         // [rows, N], the same dtype
  const StepState* state;
};

inline constinit Kernel<WriteMetrics> write_metrics{"write_metrics"};
inline constinit Kernel<PlaceRows> place_rows{"place_rows"};

/// The metrics of the last steps in device memory, row (step mod capacity); read back without stopping the step.
class MetricsRing {
 public:
  MetricsRing(const Context& ctx, Runtime& runtime, std::int64_t capacity);

  /// Inside a step: writes its row.
  void write(const Context& ctx, const Tensor& loss) const;

  /// Starts to copy the rows of the steps after the last request up to `step` (steps done) to the host.
  void request(const Context& ctx, std::uint64_t step);
  /// Rows of the oldest request, waiting for it if need be; nothing if there is none.
  [[nodiscard]] std::optional<std::vector<MetricsRow>> take();
  [[nodiscard]] bool pending() const { return !requests_.empty(); }
  /// Steps done when reading starts: after a resume.
  void start_at(std::uint64_t step) { requested_ = step; }
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }

 private:
  struct Request {
    std::uint64_t first = 0, last = 0;  // steps first+1 .. last
    std::shared_ptr<void> host;
    std::unique_ptr<Event> done;
  };
  Runtime& runtime_;
  std::int64_t capacity_;
  Tensor ring_;
  std::uint64_t requested_ = 0;
  std::vector<Request> requests_;                  // oldest first
  std::vector<std::shared_ptr<void>> free_hosts_;  // buffers of requests that were taken
};

}  // namespace graft
