#pragma once

#include <type_traits>

#include "engine/context.h"
#include "engine/device.h"
#include "engine/stream.h"

namespace graft {

[[noreturn]] void throw_missing_kernel(const char* name, Backend backend);

/// An entry point with one slot a backend. Ops call it; each backend's source file fills its slot with
/// a Register at namespace scope. Arguments are a plain block of views, sizes and constants.
///
///   inline constinit Kernel<ScaleArgs> scale{"scale"};                        // in the op's header
///   const Register registered{scale, Backend::Cpu, scale_cpu};                // in the backend's file
///   scale(ctx, {x.view(), y.mutable_view(), 2.f});                            // in the op
template <class Args>
class Kernel {
  static_assert(std::is_trivially_copyable_v<Args>, "argument blocks are recorded by copying their bytes");

 public:
  using Function = void (*)(Stream&, const Args&);

  constexpr explicit Kernel(const char* name) : name_(name) {}

  void operator()(const Context& ctx, const Args& args) const { launch(*ctx.stream, args); }

  void launch(Stream& stream, const Args& args) const {
    if (stream.mode() == Stream::Mode::Planning || !stream.wants(name_)) return;
    const Function function = slots_[static_cast<int>(stream.backend())];
    if (function == nullptr) throw_missing_kernel(name_, stream.backend());
    stream.announce(name_);
    stream.launch({name_, &Kernel::invoke, reinterpret_cast<void (*)()>(function), &args, sizeof(Args)});
  }

  [[nodiscard]] const char* name() const { return name_; }
  [[nodiscard]] bool available(Backend backend) const { return slots_[static_cast<int>(backend)] != nullptr; }
  void fill(Backend backend, Function function) { slots_[static_cast<int>(backend)] = function; }

 private:
  static void invoke(Stream& stream, void (*function)(), const void* args) {
    reinterpret_cast<Function>(function)(stream, *static_cast<const Args*>(args));
  }

  const char* name_;
  Function slots_[kBackends] = {};
};

/// Fills a kernel's slot when the file that holds it is loaded.
struct Register {
  template <class Args>
  Register(Kernel<Args>& kernel, Backend backend, typename Kernel<Args>::Function function) {
    kernel.fill(backend, function);
  }
};

}  // namespace graft
