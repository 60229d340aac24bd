#include "train/step_watcher.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace graft {

/// Everything reaches the stream below; kernels are called with that one, so that they find the stream they know.
class StepWatcher::WatchedStream final : public Stream {
 public:
  explicit WatchedStream(StepWatcher& watcher) : watcher_(watcher) {}
  void use(Stream& inner) {
    inner_ = &inner;
    mode_ = inner.mode();
  }

  [[nodiscard]] Backend backend() const override { return inner_->backend(); }
  void launch(const Launch& launch) override {
    if (!inner_->wants(launch.name)) return;
    inner_->announce(launch.name);
    inner_->launch(launch);
    ++launches_;
    watcher_.launched(launch.name, launch.args, launch.arg_bytes);
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    inner_->copy(to, from, bytes);
    const void* const args[] = {to, from};
    watcher_.launched("copy", args, sizeof(args));
  }
  void zero(void* to, std::size_t bytes) override { inner_->zero(to, bytes); }
  void download(void* host, const void* device, std::size_t bytes, std::string_view name) override {
    inner_->download(host, device, bytes, name);
  }
  void upload(void* device, const void* host, std::size_t bytes, std::string_view name) override {
    inner_->upload(device, host, bytes, name);
  }
  void download_async(void* host, const void* device, std::size_t bytes) override {
    inner_->download_async(host, device, bytes);
  }
  void synchronize() override { inner_->synchronize(); }
  [[nodiscard]] std::unique_ptr<Event> record() override { return inner_->record(); }
  void wait(const Event& event) override { inner_->wait(event); }
  void begin_capture() override { inner_->begin_capture(); }
  [[nodiscard]] std::unique_ptr<Graph> end_capture() override { return inner_->end_capture(); }
  void abandon_capture() noexcept override { inner_->abandon_capture(); }

 private:
  StepWatcher& watcher_;
  Stream* inner_ = nullptr;
};

class StepWatcher::WatchedMemory final : public Memory {
 public:
  explicit WatchedMemory(StepWatcher& watcher) : watcher_(watcher) {}
  void use(std::shared_ptr<Memory> inner) { inner_ = std::move(inner); }

  Block allocate(std::size_t bytes, std::string_view name) override {
    name_ = name;
    return inner_->allocate(bytes, name);
  }
  void release(const Block& block) noexcept override {
    watcher_.step_tensors_.erase(static_cast<const std::byte*>(block.data));
    inner_->release(block);
  }
  void describe(const Block& block, const Shape& shape, DType dtype) override {
    inner_->describe(block, shape, dtype);
    if (block.bytes == 0 || watcher_.inner_.stream->mode() == Stream::Mode::Planning) return;
    const int ordinal = watcher_.names_[name_]++;
    watcher_.add(block.data, block.bytes, {name_, {block.data, dtype, shape}, {}, ordinal});
    if (watcher_.clears_) watcher_.inner_.stream->zero(block.data, block.bytes);
  }

 private:
  StepWatcher& watcher_;
  std::shared_ptr<Memory> inner_;
  std::string name_;  // of the block that is being allocated
};

StepWatcher::StepWatcher(const ParameterStore& params, Listener listener)
    : listener_(std::move(listener)),
      stream_(std::make_unique<WatchedStream>(*this)),
      memory_(std::make_shared<WatchedMemory>(*this)) {
  const auto parameter = [&](const Tensor& flat, const ParameterStore::Entry& entry, const std::string& name) {
    if (!flat) return;
    const std::size_t size = size_of(flat.dtype());
    auto* const data = flat.mutable_view().as<std::byte>() + static_cast<std::size_t>(entry.offset) * size;
    const auto bytes = static_cast<std::size_t>(entry.stored.elements()) * size;
    if (bytes != 0) parameters_[data] = {bytes, {name, {data, flat.dtype(), entry.stored}, entry.name, 0}};
  };
  for (const ParameterStore::Entry& entry : params.entries()) {
    parameter(params.weights(), entry, entry.name);
    parameter(params.compute_copy(), entry, entry.name);
    parameter(params.gradients(), entry, "gradient of " + entry.name);
  }
}

StepWatcher::~StepWatcher() = default;

Context StepWatcher::watch(const Context& ctx) {
  inner_ = ctx;
  stream_->use(*ctx.stream);
  memory_->use(ctx.memory);
  step_tensors_.clear();
  names_.clear();
  launches_ = 0;
  Context watched = ctx;
  watched.stream = stream_.get();
  watched.memory = memory_;
  return watched;
}

void StepWatcher::add(void* data, std::size_t bytes, Watched watched) {
  step_tensors_.insert_or_assign(static_cast<const std::byte*>(data), Region{bytes, std::move(watched)});
}

const StepWatcher::Watched* StepWatcher::find(const Regions& regions, const std::byte* address) {
  auto after = regions.upper_bound(address);
  if (after == regions.begin()) return nullptr;
  const auto& [begin, region] = *std::prev(after);
  return address < begin + region.bytes ? &region.watched : nullptr;
}

void StepWatcher::launched(const char* kernel, const void* args, std::size_t arg_bytes) {
  if (inner_.stream->mode() == Stream::Mode::Planning) return;
  Launched launched{kernel, launches_++, inner_, {}};
  // Views and plain pointers alike are aligned words of the argument block; other words point nowhere.
  for (std::size_t at = 0; at + sizeof(void*) <= arg_bytes; at += sizeof(void*)) {
    const std::byte* address = nullptr;
    std::memcpy(&address, static_cast<const std::byte*>(args) + at, sizeof(address));
    const Watched* watched = find(step_tensors_, address);
    if (watched == nullptr) watched = find(parameters_, address);
    if (watched == nullptr) continue;
    if (std::find(launched.tensors.begin(), launched.tensors.end(), watched) == launched.tensors.end()) {
      launched.tensors.push_back(watched);
    }
  }
  listener_(launched);
}

}  // namespace graft
