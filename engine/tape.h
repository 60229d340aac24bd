#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft {

/// Who keeps the gradients of parameters: the tape asks it first. Implemented by ParameterStore.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  /// Where the gradient of the parameter with this id goes; an empty target if it is not a parameter.
  virtual GradTarget gradient_target(std::uint64_t id) = 0;
  /// Whether this id is one of its parameters.
  [[nodiscard]] virtual bool owns(std::uint64_t id) const = 0;
};

/// The gradients of one backward pass, by tensor identity.
class Grads {
 public:
  Grads(Context ctx, GradientSink* sink) : ctx_(std::move(ctx)), sink_(sink) {}

  /// Whether any consumer wrote a gradient of `ref`.
  [[nodiscard]] bool has(const GradRef& ref) const { return gradients_.contains(ref.id); }
  /// The gradient of an output. An empty view if no consumer wrote one.
  [[nodiscard]] ConstView of(const GradRef& ref) const;
  /// The same as a tensor; empty if there is none.
  [[nodiscard]] Tensor tensor(const GradRef& ref) const;

  /// Where a backward kernel leaves the gradient of an input: stores on the first call in a pass, adds
  /// on later ones. An empty target if `ref` needs no gradient.
  [[nodiscard]] GradTarget into(const GradRef& ref);

  /// The same for `count` columns from `first` on of a packed tensor, whose parts different ops read: stores on the
  /// first call for these columns, adds on later ones. The view is of the whole gradient; the kernel writes its columns
  /// alone. Columns that nobody writes are zeroed before anyone reads the gradient. Column ranges of different calls
  /// are the same or do not overlap. Throws ArgumentError for columns beyond the last, and on a partial overlap.
  [[nodiscard]] GradTarget into_columns(const GradRef& ref, std::int64_t first, std::int64_t count);
  /// Zeroes what into_columns() left unwritten in the gradient of `ref`; the tape does, before it hands one on.
  void complete(const GradRef& ref);
  void complete_all();

  /// Makes `gradient` (complete, and not written to again by the caller) the gradient of `ref`, or adds
  /// it where there is one already. Saves a copy where an op passes its gradient through unchanged.
  void pass(const GradRef& ref, const Tensor& gradient);

  /// Who keeps the gradients of parameters in this pass; may be null.
  [[nodiscard]] GradientSink* sink() const { return sink_; }

  /// Drops the gradient of `ref`.
  void release(const GradRef& ref) {
    gradients_.erase(ref.id);
    columns_.erase(ref.id);
  }

 private:
  Context ctx_;
  GradientSink* sink_;
  std::map<std::uint64_t, Tensor> gradients_;  // ordered: released in the same order every step
  /// Of gradients that are written in parts: columns written so far, first -> count.
  std::map<std::uint64_t, std::map<std::int64_t, std::int64_t>> columns_;
};

/// One recorded op.
struct Node {
  const char* name;
  std::vector<GradRef> outputs;
  std::function<void(const Context&, Grads&)> backward;
};

/// The ordered ops of one forward pass. Walking it from its end is the backward pass.
class Tape {
 public:
  using Backward = std::function<void(const Context&, Grads&, const GradRef& output)>;
  using BackwardMany = std::function<void(const Context&, Grads&)>;

  /// Records an op with one output. Marks `output` as needing a gradient if any input does; otherwise
  /// records nothing.
  void record(const char* name, std::initializer_list<GradRef> inputs, Tensor& output, Backward backward);
  /// The same for several outputs; the closure captures their GradRefs and checks Grads::has().
  void record(const char* name, std::initializer_list<GradRef> inputs, std::initializer_list<Tensor*> outputs,
              BackwardMany backward);

  /// Runs the backward pass of `loss` (one element), gradients of parameters going to `sink`. Each node
  /// is freed right after it ran.
  /// Gradients of other leaf tensors that need one stay in the returned Grads.
  Grads backward(const Context& ctx, const Tensor& loss, GradientSink* sink = nullptr);
  /// An output and the gradient to start from.
  struct Seed {
    Tensor output;
    Tensor gradient;
  };
  /// The same, starting from given gradients of one or several outputs.
  Grads backward_from(const Context& ctx, const std::vector<Seed>& seeds, GradientSink* sink = nullptr);

  [[nodiscard]] std::size_t size() const { return nodes_.size(); }

 private:
  void walk(const Context& ctx, Grads& grads);
  std::vector<Node> nodes_;
};

}  // namespace graft
