#include "engine/runtime.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "engine/cpu_runtime.h"
#include "engine/error.h"
#include "engine/version.h"

namespace graft {
namespace {

constexpr const char* kLibrary = "libgraft_cuda.so";

// What the backend library exports.
using Build = const char* (*)();                     // graft_cuda_build: "<interface> <git>"
using Probe = int (*)(char* why, std::size_t size);  // graft_cuda_probe: 1 if a device can be used
using Open = Runtime* (*)(int index);                // graft_cuda_open: the caller owns the result

struct CudaLibrary {
  Probe probe = nullptr;
  Open open = nullptr;
  std::string why;  // empty if loaded
};

constexpr const char* kRebuild =
    "build program and library together (cmake --build <build folder>), or install them again";

std::string own_build() { return fmt::format("{} {}", build_info().interface, build_info().git); }

/// "0.1.0-0123456789ab (git 9f2e1d0c8b7a)".
std::string shown(std::string_view build) {
  const std::size_t space = build.find(' ');
  return space == std::string_view::npos ? std::string(build)
                                         : fmt::format("{} (git {})", build.substr(0, space), build.substr(space + 1));
}

/// Loads the backend library from the folder of the program, else from the loader's path. It stays loaded: its kernels
/// are registered in the program's slots.
CudaLibrary load_cuda_library() {
  CudaLibrary library;
  std::error_code ignored;
  const std::filesystem::path beside =
      std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path() / kLibrary;
  const bool exists = std::filesystem::exists(beside, ignored);
  void* handle = dlopen(exists ? beside.c_str() : kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    // A symbol that only one of the two knows is how the loader meets a library of another build.
    library.why = exists ? fmt::format("{} could not be loaded into graft {}: {}; if a symbol is missing, {}",
                                       beside.string(), shown(own_build()), reason == nullptr ? "?" : reason, kRebuild)
                         : fmt::format(
                               "this graft has no CUDA backend ({} is not beside the program); build it with "
                               "-DGRAFT_CUDA=ON where nvcc is installed",
                               kLibrary);
    return library;
  }
  const std::string path = exists ? beside.string() : std::string(kLibrary);
  const auto build = reinterpret_cast<Build>(dlsym(handle, "graft_cuda_build"));
  library.why = backend_mismatch(path, build == nullptr ? "" : build(), own_build());
  if (!library.why.empty()) return library;
  library.probe = reinterpret_cast<Probe>(dlsym(handle, "graft_cuda_probe"));
  library.open = reinterpret_cast<Open>(dlsym(handle, "graft_cuda_open"));
  if (library.probe == nullptr || library.open == nullptr) {
    library.why = fmt::format("{} is not graft's CUDA backend", path);
  }
  return library;
}

const CudaLibrary& cuda_library() {
  static const CudaLibrary library = load_cuda_library();
  return library;
}

}  // namespace

std::string backend_mismatch(const std::string& path, std::string_view library, std::string_view program) {
  const auto interface_of = [](std::string_view build) { return build.substr(0, build.find(' ')); };
  if (!library.empty() && interface_of(library) == interface_of(program)) return {};
  return fmt::format("{} belongs to another build of graft: it is {}, this program is {}; {}", path,
                     library.empty() ? "one that does not say which" : shown(library), shown(program), kRebuild);
}

bool cuda_available(std::string* why) {
  const CudaLibrary& library = cuda_library();
  std::string reason = library.why;
  if (reason.empty()) {
    std::array<char, 512> text{};
    if (library.probe(text.data(), text.size()) == 1) return true;
    reason = text.data();
  }
  if (why != nullptr) *why = reason;
  return false;
}

std::unique_ptr<Runtime> open_runtime(Device device, const RuntimeOptions& options) {
  if (device.backend == Backend::Cpu) return make_cpu_runtime(options);
  std::string why;
  if (!cuda_available(&why)) {
    throw EnvironmentError(fmt::format("no usable GPU: {}; run with --device cpu to train without one", why));
  }
  return std::unique_ptr<Runtime>(cuda_library().open(device.index));
}

}  // namespace graft
