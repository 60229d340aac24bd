#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/dtype.h"
#include "engine/shape.h"
#include "train/file_io.h"

namespace graft {

/// Free-form strings of a file, under `__metadata__` in its header.
using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;

/// What the reader takes and the writer writes; files beyond it are refused before they cost time or memory. The names
/// of the largest published models are a tenth as long, and their headers a hundredth.
inline constexpr std::uint64_t kLargestSafetensorsHeader = 16U << 20U;  // bytes
inline constexpr std::size_t kMostSafetensors = 100'000;                // tensors; also strings of metadata
inline constexpr std::size_t kLongestTensorName = 1024;                 // bytes, at least one, no control characters

/// A tensor to be written.
struct SafetensorsDeclaration {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
};

/// Writes one file, tensor after tensor, without holding more than the piece at hand.
///
/// File: 8 bytes little-endian header length, a JSON header (padded with spaces to a multiple of 8), the
/// tensors' bytes without gaps. Tensors are stored by element size, largest first and otherwise in the order of
/// declaration, so that each starts at a multiple of its element size.
/// Source: the format's description in huggingface/safetensors, README.
class SafetensorsWriter {
 public:
  /// Throws ArgumentError on a name that is given twice, reserved or not one the reader takes, and on more tensors or a
  /// longer header than it takes; EnvironmentError if the file cannot be written.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsDeclaration> tensors,
                    const SafetensorsMetadata& metadata = {});

  /// The order in which the bytes must come.
  [[nodiscard]] const std::vector<SafetensorsDeclaration>& order() const { return tensors_; }
  /// Size of the whole file.
  [[nodiscard]] std::uint64_t file_bytes() const { return file_bytes_; }

  /// The next bytes of tensor `name`: all of it or a piece. Throws ArgumentError if another tensor is due or the
  /// bytes are more than the tensor has.
  void append(std::string_view name, std::span<const std::byte> bytes);

  /// Waits until the file is on the disk. Throws ArgumentError naming the tensor whose bytes are missing.
  FileDigest finish();

 private:
  /// Passes over tensors that are complete.
  void advance();
  std::vector<SafetensorsDeclaration> tensors_;
  OutputFile file_;
  std::size_t current_ = 0;    // tensor that is due
  std::uint64_t written_ = 0;  // its bytes so far
  std::uint64_t file_bytes_ = 0;
};

/// A tensor of a file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::F32;  // U8 for BOOL
  bool boolean = false;      // stored as BOOL: one byte an element, 0 or 1
  Shape shape;
  std::uint64_t begin = 0;  // bytes within the data part
  std::uint64_t end = 0;
};

/// Reads F64, F32, BF16, I64, I32, U8 and BOOL tensors. The whole header is checked when the file is opened, in time
/// and memory that its size bounds; nothing is believed that the file's size does not bear out. What is wrong is a
/// DataError that names the file and, where there is one, the tensor: a header that is too long, not JSON, or nested
/// otherwise than tensors are; a name that is empty, too long, given twice or has control characters; an unknown
/// dtype; fields missing, given twice or unknown; numbers that are negative, fractions or too large; more extents than
/// a Shape holds, a size that overflows or does not match its bytes; tensors that overlap or leave a gap, bytes behind
/// the last one; more than kMostSafetensors of them.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  /// In the order of their bytes.
  [[nodiscard]] const std::vector<SafetensorsEntry>& tensors() const { return tensors_; }
  [[nodiscard]] const SafetensorsMetadata& metadata() const { return metadata_; }
  /// Null if there is no such tensor.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;
  /// Throws DataError if there is no such tensor.
  [[nodiscard]] const SafetensorsEntry& at(std::string_view name) const;

  /// Fills `to`, which must have the tensor's size.
  void read(const SafetensorsEntry& tensor, std::span<std::byte> to) const;
  [[nodiscard]] std::vector<std::byte> read_bytes(std::string_view name) const;
  /// The elements, whatever the dtype (integers beyond 2^53 are rounded).
  [[nodiscard]] std::vector<double> read_doubles(std::string_view name) const;
  /// The elements of a tensor stored as T. Throws DataError if it is stored otherwise.
  template <class T>
  [[nodiscard]] std::vector<T> read_as(std::string_view name) const {
    const SafetensorsEntry& tensor = at(name);
    check_dtype(tensor, dtype_of<T>);
    std::vector<T> values(static_cast<std::size_t>(tensor.shape.elements()));
    read(tensor, std::as_writable_bytes(std::span(values)));
    return values;
  }

 private:
  struct NameIndex {
    std::uint64_t hash = 0;  // of the name
    std::size_t tensor = 0;
  };
  void check_dtype(const SafetensorsEntry& tensor, DType expected) const;
  void index_names(const std::string& label);
  InputFile file_;
  std::vector<SafetensorsEntry> tensors_;
  std::vector<NameIndex> by_name_;  // sorted
  SafetensorsMetadata metadata_;
  std::uint64_t data_begin_ = 0;
};

}  // namespace graft
