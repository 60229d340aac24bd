#include "engine/tape.h"

#include <algorithm>
#include <utility>

#include "engine/basic_kernels.h"
#include "engine/require.h"

namespace graft {
namespace {

bool any_needs_gradient(std::initializer_list<GradRef> inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const GradRef& input) { return input.requires_grad; });
}

}  // namespace

ConstView Grads::of(const GradRef& ref) const { return tensor(ref).view(); }

Tensor Grads::tensor(const GradRef& ref) const {
  const auto found = gradients_.find(ref.id);
  return found == gradients_.end() ? Tensor() : found->second;
}

GradTarget Grads::into_columns(const GradRef& ref, std::int64_t first, std::int64_t count) {
  if (!ref.requires_grad) return {};
  require(first >= 0 && count >= 1 && first + count <= ref.shape.columns(),
          "backward: columns {}..{} of a tensor of shape {}", first, first + count, ref.shape.str());
  require(sink_ == nullptr || !sink_->owns(ref.id), "backward: a parameter's gradient cannot be written in parts");
  const bool started = gradients_.contains(ref.id);
  if (started && !columns_.contains(ref.id)) return into(ref);  // complete already: everyone adds
  const GradTarget whole = started ? GradTarget{gradients_.at(ref.id).mutable_view(), false} : into(ref);
  std::map<std::int64_t, std::int64_t>& written = columns_[ref.id];
  const auto same = written.find(first);
  if (same != written.end() && same->second == count) return {whole.view, true};
  for (const auto& [begin, size] : written) {
    require(begin + size <= first || first + count <= begin,
            "backward: columns {}..{} overlap columns {}..{}, expected the same or none in common", first,
            first + count, begin, begin + size);
  }
  written.emplace(first, count);
  return {whole.view, whole.accumulate};
}

void Grads::complete(const GradRef& ref) {
  const auto found = columns_.find(ref.id);
  if (found == columns_.end()) return;
  const Tensor& gradient = gradients_.at(ref.id);
  std::int64_t at = 0;
  const auto zero_up_to = [&](std::int64_t end) {
    if (at < end) zero_columns(ctx_, {gradient.mutable_view(), at, end - at});
  };
  for (const auto& [begin, size] : found->second) {
    zero_up_to(begin);
    at = begin + size;
  }
  zero_up_to(gradient.shape().columns());
  columns_.erase(found);
}

void Grads::complete_all() {
  while (!columns_.empty()) {
    GradRef ref;
    ref.id = columns_.begin()->first;
    complete(ref);
  }
}

GradTarget Grads::into(const GradRef& ref) {
  if (!ref.requires_grad) return {};
  complete(ref);
  if (sink_ != nullptr) {
    if (GradTarget target = sink_->gradient_target(ref.id)) return target;
  }
  auto found = gradients_.find(ref.id);
  if (found == gradients_.end()) {
    Tensor gradient = ctx_.empty(ref.shape, ref.dtype, "gradient");
    const GradTarget target{gradient.mutable_view(), false};
    gradients_.emplace(ref.id, std::move(gradient));
    return target;
  }
  if (found->second.use_count() > 1) {  // passed through by an op: others read it, so it must not change
    Tensor own = ctx_.empty(found->second.shape(), found->second.dtype(), "gradient");
    copy_cast(ctx_, {own.mutable_view(), found->second.view()});
    found->second = std::move(own);
  }
  return {found->second.mutable_view(), true};
}

void Grads::pass(const GradRef& ref, const Tensor& gradient) {
  if (!ref.requires_grad) return;
  require(gradient.elements() == ref.shape.elements(), "backward: a gradient of shape {} for a tensor of shape {}",
          gradient.shape().str(), ref.shape.str());
  const bool kept_here = sink_ == nullptr || !sink_->owns(ref.id);
  if (kept_here && gradient.dtype() == ref.dtype && !gradients_.contains(ref.id)) {
    gradients_.emplace(ref.id, gradient.reshaped(ref.shape));
    return;
  }
  const GradTarget target = into(ref);
  if (target.accumulate) {
    add_to(ctx_, {target.view, gradient.view()});
  } else {
    copy_cast(ctx_, {target.view, gradient.view()});
  }
}

void Tape::record(const char* name, std::initializer_list<GradRef> inputs, Tensor& output, Backward backward) {
  if (!any_needs_gradient(inputs)) return;
  output.set_requires_grad(true);
  const GradRef ref = output;
  nodes_.push_back({name, {ref}, [ref, backward = std::move(backward)](const Context& ctx, Grads& grads) {
                      backward(ctx, grads, ref);
                    }});
}

void Tape::record(const char* name, std::initializer_list<GradRef> inputs, std::initializer_list<Tensor*> outputs,
                  BackwardMany backward) {
  if (!any_needs_gradient(inputs)) return;
  Node node{name, {}, std::move(backward)};
  for (Tensor* output : outputs) {
    if (!*output) continue;  // an optional output that was left out
    output->set_requires_grad(true);
    node.outputs.push_back(*output);
  }
  nodes_.push_back(std::move(node));
}

Grads Tape::backward(const Context& ctx, const Tensor& loss, GradientSink* sink) {
  require(loss.elements() == 1, "backward: the loss has shape {}, expected one element", loss.shape().str());
  Tensor one = ctx.empty(loss.shape(), loss.dtype(), "gradient of the loss");
  fill_value(ctx, {one.mutable_view(), 1.0});
  return backward_from(ctx, {{loss, one}}, sink);
}

Grads Tape::backward_from(const Context& ctx, const std::vector<Seed>& seeds, GradientSink* sink) {
  Context inner = ctx;
  inner.tape = nullptr;  // what backward computes is not differentiated again
  Grads grads(inner, sink);
  for (const Seed& seed : seeds) {
    require(seed.output.requires_grad(), "backward: an output does not depend on anything that needs a gradient");
    grads.pass(seed.output, seed.gradient);
  }
  walk(inner, grads);
  return grads;
}

void Tape::walk(const Context& ctx, Grads& grads) {
  while (!nodes_.empty()) {
    {
      const Node node = std::move(nodes_.back());
      nodes_.pop_back();
      const bool wanted = std::any_of(node.outputs.begin(), node.outputs.end(),
                                      [&](const GradRef& output) { return grads.has(output); });
      for (const GradRef& output : node.outputs) grads.complete(output);
      if (wanted) node.backward(ctx, grads);
      for (const GradRef& output : node.outputs) grads.release(output);
    }  // the node's saved tensors are free again from here
  }
  grads.complete_all();
}

}  // namespace graft
