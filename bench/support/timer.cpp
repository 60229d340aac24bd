#include "bench/support/timer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "bench/support/bench.h"
#include "ops/linear.h"
#include "train/signals.h"

namespace graft::bench {

Timing time_batches(Stream& stream, const std::function<void()>& enqueue, std::int64_t runs, int batches) {
  using Clock = std::chrono::steady_clock;
  enqueue();
  stream.synchronize();
  std::vector<double> times;
  for (int batch = 0; batch < batches; ++batch) {
    SignalGuard::check("in a benchmark");
    const Clock::time_point start = Clock::now();
    enqueue();
    stream.synchronize();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(runs));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

std::string interruption_text(std::size_t done, std::size_t all) {
  return fmt::format("with {} of {} benchmarks done and reported; --filter chooses among them", done, all);
}

std::int64_t runs_for(double seconds, double target) {
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(target / std::max(seconds, 1e-9)), 1, 20000);
}

Ceilings measure_ceilings(const Context& ctx) {
  const bool gpu = ctx.backend == Backend::Cuda;
  Ceilings ceilings;
  {
    const std::int64_t elements = gpu ? std::int64_t{1} << 28 : std::int64_t{1} << 26;
    const Tensor from = ctx.empty_run({elements}, DType::F32, "ceiling");
    const Tensor to = ctx.empty_run({elements}, DType::F32, "ceiling");
    ctx.stream->zero(from.mutable_view().data, from.bytes());
    const Timing timing = time_batches(
        *ctx.stream,
        [&] {
          for (int i = 0; i < 4; ++i) ctx.stream->copy(to.mutable_view().data, from.view().data, from.bytes());
        },
        4, 3);
    ceilings.bytes_per_second = 2 * static_cast<double>(from.bytes()) / timing.median;
  }
  const std::int64_t size = gpu ? (ctx.precision == Precision::Fp32 ? 4096 : 8192) : 1024;
  const Tensor x = random_tensor(ctx, {size, size}, ctx.compute_dtype(), 1);
  const Tensor weight = random_tensor(ctx, {size, size}, ctx.compute_dtype(), 2);
  const Tensor y = ctx.empty_run({size, size}, ctx.compute_dtype(), "ceiling");
  const Timing timing = time_batches(
      *ctx.stream,
      [&] {
        for (int i = 0; i < 4; ++i) {
          linear_forward(ctx, {.x = x.view(),
                               .weight = weight.view(),
                               .bias = {},
                               .y = y.mutable_view(),
                               .pre = {},
                               .precision = ctx.precision,
                               .fused = {}});
        }
      },
      4, 3);
  const auto n = static_cast<double>(size);
  ceilings.flops_per_second = 2 * n * n * n / timing.median;
  return ceilings;
}

Ceilings measure_ceilings(const Context& ctx, Runtime& runtime) {
  Context alone;
  alone.backend = ctx.backend;
  alone.stream = ctx.stream;
  alone.run_memory = runtime.make_pool();
  alone.memory = alone.run_memory;
  alone.precision = ctx.precision;
  return measure_ceilings(alone);
}

}  // namespace graft::bench
