#include "train/session.h"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <system_error>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"
#include "engine/stream.h"
#include "train/checkpoint_state.h"
#include "train/host_snapshot.h"

namespace graft {
namespace {

using Buffer = ParameterStore::Buffer;

std::vector<double> unpack(const CheckpointTensor& tensor) {
  std::vector<double> values(static_cast<std::size_t>(tensor.shape.elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::F64) {
      std::memcpy(&values[i], tensor.data.data() + 8 * i, 8);
    } else {
      float narrow = 0;
      std::memcpy(&narrow, tensor.data.data() + 4 * i, 4);
      values[i] = static_cast<double>(narrow);
    }
  }
  return values;
}

std::vector<double> find(const std::vector<CheckpointTensor>& tensors, const std::string& name, const Shape& shape) {
  for (const CheckpointTensor& tensor : tensors) {
    if (tensor.name != name) continue;
    if (!(tensor.shape == shape) || (tensor.dtype != DType::F32 && tensor.dtype != DType::F64)) {
      throw DataError(fmt::format("checkpoint: {} is {} {}, expected {} float32 or float64", name, tensor.shape.str(),
                                  name_of(tensor.dtype), shape.str()));
    }
    return unpack(tensor);
  }
  throw DataError(fmt::format("checkpoint: there is no {} in it; it belongs to another model", name));
}

}  // namespace

Session::State::State(const Context& ctx, const char* name)
    : tensor_(ctx.empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, name)) {}

void Session::State::write(const Context& ctx, const StepState& state) const {
  ctx.stream->upload(tensor_.mutable_view().data, &state, sizeof(state), "step state");
}

StepState Session::State::read(const Context& ctx) const {
  StepState state;
  ctx.stream->download(&state, tensor_.view().data, sizeof(state), "step state");
  return state;
}

Session::Session(Experiment& experiment, Device device, const RuntimeOptions& options, bool training)
    : experiment_(experiment), threads_(options.threads) {
  const Precision precision = experiment.config.train.precision;
  require(precision != Precision::Fp64 || device.backend == Backend::Cpu,
          "train.precision = \"fp64\" runs on the CPU only; use --device cpu, or tf32 or bf16 on a GPU");
  runtime_ = open_runtime(device, options);
  stream_ = runtime_->make_stream();
  range_ = runtime_->reserve_range();
  ctx_.backend = device.backend;
  ctx_.stream = stream_.get();
  ctx_.run_memory = runtime_->make_pool();
  ctx_.memory = ctx_.run_memory;
  ctx_.precision = precision;
  ctx_.training = training;
  state_ = std::make_unique<State>(ctx_, "step state");
  ctx_.state = state_->pointer();
  experiment_.params.allocate(ctx_, training);
}

Session::~Session() = default;

void Session::initialize() {
  const RunConfig& config = experiment_.config;
  experiment_.params.initialize(ctx_, config.run.seed);
  state_->write(ctx_, initial_state(config.run.seed, experiment_.schedule, experiment_.optimizer.beta1,
                                    experiment_.optimizer.beta2));
}

void Session::restore(const CheckpointData& checkpoint, bool with_optimizer) {
  ParameterStore& params = experiment_.params;
  for (const ParameterStore::Entry& entry : params.entries()) {
    params.write(ctx_, entry, Buffer::Weights, find(checkpoint.model, entry.name, entry.shape));
    if (!with_optimizer) continue;
    params.write(ctx_, entry, Buffer::FirstMoments,
                 find(checkpoint.optimizer, "first_moment." + entry.name, entry.shape));
    params.write(ctx_, entry, Buffer::SecondMoments,
                 find(checkpoint.optimizer, "second_moment." + entry.name, entry.shape));
  }
  params.refresh_compute_copy(ctx_);
  if (!with_optimizer) return;
  const StepState state = step_state_in(checkpoint.state, checkpoint.step, checkpoint.path / "state.json");
  state_->write(ctx_, state);
}

CheckpointData Session::snapshot(const nlohmann::json& extra) const {
  HostSnapshot host(*this);
  host.take();
  host.wait();
  const CheckpointView view = host.view(extra);
  const auto copies = [](const std::vector<CheckpointTensorView>& tensors) {
    std::vector<CheckpointTensor> result;
    for (const CheckpointTensorView& tensor : tensors) {
      result.push_back({tensor.name, tensor.dtype, tensor.shape, std::vector<std::byte>(tensor.bytes())});
      for (std::size_t row = 0; row < tensor.rows; ++row) {
        std::memcpy(result.back().data.data() + row * tensor.row_bytes, tensor.data + row * tensor.stride,
                    tensor.row_bytes);
      }
    }
    return result;
  };
  return {copies(view.model), copies(view.optimizer), view.state, view.step};
}

Device parse_device(std::string_view text, Precision precision) {
  if (text == "cpu") return {Backend::Cpu, 0};
  if (text == "auto") {
    const bool gpu = precision != Precision::Fp64 && cuda_available();
    return {gpu ? Backend::Cuda : Backend::Cpu, 0};
  }
  if (text == "cuda") return {Backend::Cuda, 0};
  if (text.starts_with("cuda:")) {
    int index = -1;
    const auto [end, problem] = std::from_chars(text.data() + 5, text.data() + text.size(), index);
    if (problem == std::errc() && end == text.data() + text.size() && index >= 0) return {Backend::Cuda, index};
  }
  throw ArgumentError(fmt::format("--device: \"{}\", expected cpu, cuda, cuda:<index> or auto", text));
}

std::unique_ptr<Session> open_training_session(Experiment& experiment, const MemoryReport& memory, Device device,
                                               const RuntimeOptions& options, int jobs) {
  try {
    auto session = std::make_unique<Session>(experiment, device, options, true);
    session->range()->grow(memory.activations);  // before there is a run
    return session;
  } catch (const OutOfMemoryError& error) {
    throw OutOfMemoryError(
        fmt::format("{}; {}", error.what(), out_of_memory_advice(experiment.config, memory, error.room(), jobs)),
        error.room());
  }
}

}  // namespace graft
