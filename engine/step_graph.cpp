#include "engine/step_graph.h"

#include <utility>

#include "engine/require.h"

namespace graft {

StepGraph::StepGraph(Context ctx, std::shared_ptr<AddressRange> range, std::string name, Step step)
    : ctx_(std::move(ctx)),
      arena_(std::make_shared<StepArena>(std::move(range), std::move(name))),
      step_(std::move(step)) {
  ctx_.memory = arena_;
}

void StepGraph::walk() {
  arena_->begin_step();
  step_(ctx_);
  arena_->end_step();
}

void StepGraph::plan_only() {
  ctx_.stream->set_planning(true);
  try {
    walk();
  } catch (...) {
    ctx_.stream->set_planning(false);
    throw;
  }
  ctx_.stream->set_planning(false);
  arena_->plan_only();
}

void StepGraph::plan() {
  plan_only();
  arena_->plan();
}

void StepGraph::run_eager() {
  require(arena_->planned(), "step: run before it was planned");
  walk();
}

void StepGraph::capture() {
  require(arena_->planned(), "step: captured before it was planned");
  ctx_.stream->begin_capture();
  try {
    walk();
  } catch (...) {
    ctx_.stream->abandon_capture();
    throw;
  }
  graph_ = ctx_.stream->end_capture();
}

void StepGraph::replay() {
  require(graph_ != nullptr, "step: replayed before it was captured");
  graph_->replay(*ctx_.stream);
}

}  // namespace graft
