// The safetensors reader on arbitrary files. An input is tried as it stands and, since a header's length is hard to
// hit by mutation, once more with the length that ends the header at its last brace.

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "engine/error.h"
#include "tests/fuzz/fuzz.h"
#include "train/safetensors.h"

namespace graft {
namespace {

/// One file in memory, with a path the reader can open.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("safetensors", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) {
    fuzz::expect(fd_ >= 0, "a file in memory can be had");
  }
  void write(std::string_view bytes) const {
    fuzz::expect(ftruncate(fd_, 0) == 0, "the file can be emptied");
    fuzz::expect(pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()), "and written");
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

void check(const MemoryFile& file, std::string_view bytes) {
  file.write(bytes);
  try {
    const SafetensorsFile tensors(file.path());
    std::uint64_t data = 0;
    for (const SafetensorsEntry& tensor : tensors.tensors()) {
      const auto elements = static_cast<std::uint64_t>(tensor.shape.elements());
      fuzz::expect(tensor.end - tensor.begin == elements * size_of(tensor.dtype), "a tensor's bytes fit its shape");
      fuzz::expect(tensor.begin == data, "tensors follow one another");
      data = tensor.end;
      fuzz::expect(tensors.find(tensor.name) == &tensor, "a tensor is found by its name");
      fuzz::expect(tensors.read_bytes(tensor.name).size() == tensor.end - tensor.begin, "its bytes can be read");
      fuzz::expect(tensors.read_doubles(tensor.name).size() == elements, "and its elements");
    }
    fuzz::expect(data < bytes.size(), "tensors lie in the file");
    const std::string_view header = bytes.substr(8, bytes.size() - 8 - data);
    fuzz::expect(nlohmann::json::accept(header), "what is accepted is JSON for another reader too", header);
  } catch (const DataError& error) {
    fuzz::expect_message(error.what(), 2048, false);
  }
}

}  // namespace
}  // namespace graft

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const graft::MemoryFile file;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  graft::check(file, bytes);
  const std::size_t brace = bytes.rfind('}');
  if (brace != std::string::npos && brace >= 8) {
    const std::uint64_t length = brace + 1 - 8;
    std::memcpy(bytes.data(), &length, sizeof(length));
    graft::check(file, bytes);
  }
  return 0;
}
