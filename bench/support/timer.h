#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/runtime.h"
#include "engine/stream.h"

namespace graft::bench {

/// Times of repeated measurements, in seconds for one run of what was timed.
struct Timing {
  double median = 0;
  double lowest = 0;
  double highest = 0;
};

/// Runs `enqueue` (which enqueues `runs` runs on the stream) once to warm up, then `batches` times, each between two
/// synchronisations of the stream. A signal ends it between two of them with InterruptedError. The host's clock is
/// read: on a GPU a batch must take long enough (milliseconds) for launch latency not to matter.
[[nodiscard]] Timing time_batches(Stream& stream, const std::function<void()>& enqueue, std::int64_t runs, int batches);

/// How often to run something that takes `seconds` so that a batch takes about `target` seconds.
[[nodiscard]] std::int64_t runs_for(double seconds, double target);

/// What a command that times `all` benchmarks says of its interruption after `done`: for SignalGuard::check().
[[nodiscard]] std::string interruption_text(std::size_t done, std::size_t all);

/// Measured ceilings of a device, for shares: bytes a second of a large copy (read + written), operations a second of a
/// large matrix product in the context's precision.
struct Ceilings {
  double bytes_per_second = 0;
  double flops_per_second = 0;
};
[[nodiscard]] Ceilings measure_ceilings(const Context& ctx);
/// The same on another context's device and stream, in memory that is given back afterwards.
[[nodiscard]] Ceilings measure_ceilings(const Context& ctx, Runtime& runtime);

}  // namespace graft::bench
