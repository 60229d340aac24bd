#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/device.h"

namespace graft {

class Stream;

/// One launch, type-erased: `invoke(stream, function, args)` calls the kernel. `args` is trivially
/// copyable, so that a CPU stream can record it and replay it later.
struct Launch {
  const char* name;
  void (*invoke)(Stream&, void (*function)(), const void* args);
  void (*function)();
  const void* args;
  std::size_t arg_bytes;
};

/// Marks a point in a stream.
class Event {
 public:
  virtual ~Event() = default;
  /// Whether all work before the mark has finished.
  [[nodiscard]] virtual bool finished() const = 0;
  /// Blocks the host until it has.
  virtual void synchronize() const = 0;
};

/// Work captured from a stream. Replaying it repeats every launch with the same argument blocks.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void replay(Stream& stream) = 0;
  /// Kernels, copies and fills in one replay.
  [[nodiscard]] virtual std::size_t launches() const = 0;
};

/// An ordered queue of work on one device. In `Planning` mode launches are discarded: a step can then
/// be walked through for its memory alone. While capturing, launches are recorded and nothing runs.
class Stream {
 public:
  enum class Mode : std::uint8_t { Eager, Planning, Capturing };

  virtual ~Stream() = default;
  [[nodiscard]] virtual Backend backend() const = 0;
  [[nodiscard]] Mode mode() const { return mode_; }

  /// Runs, records or discards a kernel launch, as the mode says.
  virtual void launch(const Launch& launch) = 0;
  /// Copies within the device; recordable.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  /// Sets bytes to zero; recordable.
  virtual void zero(void* to, std::size_t bytes) = 0;

  /// Copies between host and device and waits. `name` is what an error calls the tensor. Throws
  /// ArgumentError while capturing, since the values do not exist yet, and while planning.
  virtual void download(void* host, const void* device, std::size_t bytes, std::string_view name) = 0;
  virtual void upload(void* device, const void* host, std::size_t bytes, std::string_view name) = 0;
  /// Starts a copy to `host` (from Runtime::allocate_pinned) that a later event covers.
  virtual void download_async(void* host, const void* device, std::size_t bytes) = 0;

  virtual void synchronize() = 0;
  /// Everything enqueued so far.
  [[nodiscard]] virtual std::unique_ptr<Event> record() = 0;
  /// Later work in this stream waits for `event`.
  virtual void wait(const Event& event) = 0;

  virtual void begin_capture() = 0;
  [[nodiscard]] virtual std::unique_ptr<Graph> end_capture() = 0;
  /// Ends a capture that failed, discarding what was recorded.
  virtual void abandon_capture() noexcept = 0;

  /// Tells the listener. Kernel calls it before each launch.
  void announce(const char* kernel) const {
    if (listener_) listener_(kernel);
  }

  /// Switches launch discarding on or off.
  void set_planning(bool planning);

  /// Discards every launch of another kernel name, and copies and fills, from here on; empty: none. A step captured
  /// that way holds one kernel's launches alone, whose time can then be measured; its results mean nothing.
  void set_only(std::string_view kernel) { only_ = kernel; }
  [[nodiscard]] bool wants(std::string_view kernel) const { return only_.empty() || only_ == kernel; }
  /// Calls `listener` with the name of every kernel that is launched or recorded.
  void set_listener(std::function<void(const char* kernel)> listener) { listener_ = std::move(listener); }

  /// Launches since construction (recorded ones included, planned ones not); for reports.
  [[nodiscard]] std::uint64_t launches() const { return launches_; }

 protected:
  Mode mode_ = Mode::Eager;
  std::uint64_t launches_ = 0;
  std::string only_;
  std::function<void(const char*)> listener_;
};

}  // namespace graft
