#include "train/host_snapshot.h"

#include <array>
#include <cstring>

#include "engine/stream.h"

namespace graft {

HostSnapshot::HostSnapshot(const Session& session)
    : session_(session),
      buffer_bytes_(session.experiment().params.weights().bytes()),
      host_(session.runtime().allocate_pinned(3 * buffer_bytes_ + sizeof(StepState))) {
  std::memset(host_.get(), 0, bytes());
}

std::size_t HostSnapshot::bytes() const { return 3 * buffer_bytes_ + sizeof(StepState); }

const std::byte* HostSnapshot::buffer(int index) const {
  return static_cast<const std::byte*>(host_.get()) + static_cast<std::size_t>(index) * buffer_bytes_;
}

void HostSnapshot::take() {
  const ParameterStore& params = session_.experiment().params;
  Stream& stream = *session_.ctx().stream;
  auto* to = static_cast<std::byte*>(host_.get());
  for (const Tensor* tensor : {&params.weights(), &params.first_moments(), &params.second_moments()}) {
    stream.download_async(to, tensor->view().data, buffer_bytes_);
    to += buffer_bytes_;
  }
  stream.download_async(to, session_.state().pointer(), sizeof(StepState));
  arrived_ = stream.record();
}

void HostSnapshot::wait() const {
  if (arrived_ != nullptr) arrived_->synchronize();
}

CheckpointView HostSnapshot::view(const nlohmann::json& extra) const {
  const ParameterStore& params = session_.experiment().params;
  const DType dtype = params.weights().dtype();
  const std::size_t size = size_of(dtype);
  const auto piece = [&](const ParameterStore::Entry& entry, const char* prefix, int index) {
    // Only the first and the last extent can be padded: rows follow each other at the stored row's length.
    const auto columns = static_cast<std::size_t>(entry.shape.columns());
    CheckpointTensorView tensor;
    tensor.name = prefix + entry.name;
    tensor.dtype = dtype;
    tensor.shape = entry.shape;
    tensor.data = buffer(index) + static_cast<std::size_t>(entry.offset) * size;
    tensor.rows = columns == 0 ? 0 : static_cast<std::size_t>(entry.shape.elements()) / columns;
    tensor.row_bytes = columns * size;
    tensor.stride = static_cast<std::size_t>(entry.stored.columns()) * size;
    return tensor;
  };
  CheckpointView view;
  for (const ParameterStore::Entry& entry : params.entries()) {
    view.model.push_back(piece(entry, "", 0));
    view.optimizer.push_back(piece(entry, "first_moment.", 1));
    view.optimizer.push_back(piece(entry, "second_moment.", 2));
  }
  StepState state;
  std::memcpy(&state, buffer(3), sizeof(state));
  view.step = static_cast<std::int64_t>(state.step);
  view.state = extra;
  view.state["step_state"] = {{"step", state.step},
                              {"seed", state.seed},
                              {"updates", state.updates},
                              {"skipped", state.skipped},
                              {"skipped_in_row", state.skipped_in_row},
                              {"learning_rate", state.learning_rate},
                              {"bias_correction1", state.bias_correction1},
                              {"bias_correction2", state.bias_correction2}};
  return view;
}

}  // namespace graft
