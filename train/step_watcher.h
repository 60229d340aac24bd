#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/parameter_store.h"
#include "engine/stream.h"
#include "engine/tensor.h"

namespace graft {

/// Stands between a step and its device: hands every launch and every allocation on, unchanged and in the same order,
/// and tells after each launch which tensors it was given. Works in planning, eager and capturing steps; a captured
/// graph holds no trace of it beyond what the listener launched itself.
///
///   StepWatcher watcher(params, [](const StepWatcher::Launched& launched) { ... });
///   parts.intercept = [&](const Context& ctx) { return watcher.watch(ctx); };
class StepWatcher {
 public:
  struct Watched {
    std::string name;  // of a step tensor; "blocks.0.mlp.up.weight", "gradient of blocks.0.mlp.up.weight"
    View view;
    std::string parameter;  // its name, if the tensor belongs to one
    int ordinal = 0;        // how many step tensors of the same name were allocated before it in this step
  };
  struct Launched {
    const char* kernel;
    std::int64_t number;                  // launches before it in this step
    const Context& inner;                 // the context below: what is launched there is not watched
    std::vector<const Watched*> tensors;  // those that the argument block points into, in its order
  };
  using Listener = std::function<void(const Launched&)>;

  /// `params` must be allocated.
  StepWatcher(const ParameterStore& params, Listener listener);
  ~StepWatcher();
  StepWatcher(const StepWatcher&) = delete;
  StepWatcher& operator=(const StepWatcher&) = delete;

  /// The context a step is to run in instead of `ctx`; one step at a time. The watcher must outlive the step.
  [[nodiscard]] Context watch(const Context& ctx);

  /// Fills step tensors with zeros before anything is written to them, so that what a kernel leaves unwritten is not
  /// taken for a result.
  void set_clears(bool clears) { clears_ = clears; }

 private:
  class WatchedStream;
  class WatchedMemory;
  void launched(const char* kernel, const void* args, std::size_t arg_bytes);
  void add(void* data, std::size_t bytes, Watched watched);

  struct Region {
    std::size_t bytes = 0;
    Watched watched;
  };
  using Regions = std::map<const std::byte*, Region>;  // by address; they do not overlap
  [[nodiscard]] static const Watched* find(const Regions& regions, const std::byte* address);

  Listener listener_;
  Regions parameters_, step_tensors_;
  std::map<std::string, int, std::less<>> names_;
  std::unique_ptr<WatchedStream> stream_;
  std::shared_ptr<WatchedMemory> memory_;
  Context inner_;
  std::int64_t launches_ = 0;
  bool clears_ = false;
};

}  // namespace graft
