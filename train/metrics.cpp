#include "train/metrics.h"

#include <cstring>
#include <utility>

#include "engine/require.h"
#include "engine/stream.h"

namespace graft {
namespace {

void write_metrics_cpu(Stream&, const WriteMetrics& args) {
  const double loss =
      args.loss.dtype == DType::F64 ? *args.loss.as<double>() : static_cast<double>(*args.loss.as<float>());
  const StepState& state = *args.state;
  args.ring[state.step % static_cast<std::uint64_t>(args.capacity)] = metrics_row(state, loss);
}

void place_rows_cpu(Stream&, const PlaceRows& args) {
  const std::size_t bytes = static_cast<std::size_t>(args.from.shape.elements()) * size_of(args.from.dtype);
  std::memcpy(args.to.as<std::byte>() + args.state->step * bytes, args.from.data, bytes);
}

const Register write_registered{write_metrics, Backend::Cpu, write_metrics_cpu};
const Register place_registered{place_rows, Backend::Cpu, place_rows_cpu};

}  // namespace

MetricsRing::MetricsRing(const Context& ctx, Runtime& runtime, std::int64_t capacity)
    : runtime_(runtime),
      capacity_(capacity),
      ring_(ctx.empty_run({capacity * static_cast<std::int64_t>(sizeof(MetricsRow))}, DType::U8, "metrics ring")) {
  ctx.stream->zero(ring_.mutable_view().data, ring_.bytes());
}

void MetricsRing::write(const Context& ctx, const Tensor& loss) const {
  write_metrics(ctx, {loss.view(), ctx.state, ring_.mutable_view().as<MetricsRow>(), capacity_});
}

void MetricsRing::request(const Context& ctx, std::uint64_t step) {
  if (step <= requested_) return;
  require(step - requested_ <= static_cast<std::uint64_t>(capacity_), "metrics: {} steps asked for, the ring holds {}",
          step - requested_, capacity_);
  if (free_hosts_.empty()) free_hosts_.push_back(runtime_.allocate_pinned(ring_.bytes()));
  Request request{requested_, step, std::move(free_hosts_.back()), nullptr};
  free_hosts_.pop_back();
  ctx.stream->download_async(request.host.get(), ring_.view().data, ring_.bytes());
  request.done = ctx.stream->record();
  requests_.push_back(std::move(request));
  requested_ = step;
}

std::optional<std::vector<MetricsRow>> MetricsRing::take() {
  if (requests_.empty()) return std::nullopt;
  Request request = std::move(requests_.front());
  requests_.erase(requests_.begin());
  request.done->synchronize();
  const auto* rows = static_cast<const MetricsRow*>(request.host.get());
  std::vector<MetricsRow> result;
  for (std::uint64_t step = request.first; step < request.last; ++step) {
    result.push_back(rows[step % static_cast<std::uint64_t>(capacity_)]);
  }
  free_hosts_.push_back(std::move(request.host));
  return result;
}

}  // namespace graft
