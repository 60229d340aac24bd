#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>

#include "train/checkpoint.h"
#include "train/session.h"

namespace graft {

/// One copy of a run's state (weights, moments, step state) in host memory that the device writes to by itself, so
/// that a step goes on as soon as the copy is made and a file can be written from it meanwhile.
///
/// take() and the destructor belong to the thread that drives the session's stream; wait() and view() may be called
/// from another one. Nobody may call take() while a view is in use.
class HostSnapshot {
 public:
  /// Takes the memory: flat buffers of weights and both moments, as long as on the device.
  explicit HostSnapshot(const Session& session);

  /// Starts the copy; what the stream does later comes after it.
  void take();
  /// Returns when the copy has arrived.
  void wait() const;
  /// The state as a checkpoint holds it, without a copy; `extra` is merged into state.json. Before a take() only the
  /// sizes mean anything.
  [[nodiscard]] CheckpointView view(const nlohmann::json& extra) const;
  [[nodiscard]] std::size_t bytes() const;

 private:
  [[nodiscard]] const std::byte* buffer(int index) const;
  const Session& session_;
  std::size_t buffer_bytes_;    // of one flat buffer
  std::shared_ptr<void> host_;  // weights, first moments, second moments, StepState
  std::unique_ptr<Event> arrived_;
};

}  // namespace graft
