#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/context.h"
#include "engine/step_arena.h"
#include "engine/stream.h"

namespace graft {

/// One step function with its memory: planned, run eagerly, captured, replayed. It keeps its arena
/// alive for as long as the graph may run.
class StepGraph {
 public:
  using Step = std::function<void(const Context&)>;

  /// `ctx` is the context steps run in, without its memory; `step` must be the same function every time.
  StepGraph(Context ctx, std::shared_ptr<AddressRange> range, std::string name, Step step);

  /// Walks the step once for its memory and maps what it needs.
  void plan();
  /// The same without mapping: for reports.
  void plan_only();
  /// Runs the step kernel by kernel at the planned addresses.
  void run_eager();
  /// Captures the step; nothing runs. Throws if the step does what cannot be captured.
  void capture();
  [[nodiscard]] bool captured() const { return graph_ != nullptr; }
  /// Runs the captured step.
  void replay();

  [[nodiscard]] const StepArena& arena() const { return *arena_; }
  /// Launches of one captured step.
  [[nodiscard]] std::size_t launches() const { return graph_ == nullptr ? 0 : graph_->launches(); }

 private:
  void walk();
  Context ctx_;
  std::shared_ptr<StepArena> arena_;
  Step step_;
  std::unique_ptr<Graph> graph_;
};

}  // namespace graft
