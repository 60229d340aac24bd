#include "train/safetensors.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"
#include "train/config_file.h"
#include "train/safetensors_header.h"

namespace graft {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and written as it lies");

constexpr std::uint64_t kLengthBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";

std::uint64_t bytes_of(const SafetensorsDeclaration& tensor) {
  return static_cast<std::uint64_t>(tensor.shape.elements()) * size_of(tensor.dtype);
}

std::vector<SafetensorsDeclaration> in_file_order(std::vector<SafetensorsDeclaration> tensors) {
  require(tensors.size() <= kMostSafetensors, "safetensors: {} tensors, expected at most {}", tensors.size(),
          kMostSafetensors);
  std::set<std::string_view> names;
  for (const auto& tensor : tensors) {
    const char* fault = fault_of_tensor_name(tensor.name);
    require(fault == nullptr, "safetensors: tensor '{}' has {}", shown_tensor_name(tensor.name),
            fault == nullptr ? "" : fault);
    require(tensor.name != kMetadataKey, "safetensors: the name {} is reserved", tensor.name);
    require(names.insert(tensor.name).second, "safetensors: tensor '{}' is given twice", tensor.name);
  }
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const auto& a, const auto& b) { return size_of(a.dtype) > size_of(b.dtype); });
  return tensors;
}

/// Sorted by what little decides it, so that a file of very many tensors is opened, or refused, as quickly as it is
/// read.
std::vector<SafetensorsEntry> in_order_of_bytes(std::vector<SafetensorsEntry> tensors) {
  std::vector<std::tuple<std::uint64_t, std::uint64_t, std::size_t>> order;
  for (const SafetensorsEntry& tensor : tensors) order.emplace_back(tensor.begin, tensor.end, order.size());
  if (std::is_sorted(order.begin(), order.end())) return tensors;
  std::sort(order.begin(), order.end());
  std::vector<SafetensorsEntry> sorted;
  sorted.reserve(tensors.size());
  for (const auto& [begin, end, index] : order) sorted.push_back(std::move(tensors[index]));
  return sorted;
}

std::uint64_t hash_of(std::string_view name) { return XXH3_64bits(name.data(), name.size()); }

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsDeclaration> tensors,
                                     const SafetensorsMetadata& metadata)
    : tensors_(in_file_order(std::move(tensors))), file_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::uint64_t offset = 0;
  for (const auto& tensor : tensors_) {
    const std::uint64_t end = offset + bytes_of(tensor);
    auto shape = nlohmann::ordered_json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    header[tensor.name] = {
        {"dtype", safetensors_dtype_name(tensor.dtype)}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(text.size()), 8)), ' ');
  require(text.size() <= kLargestSafetensorsHeader, "safetensors: {}: a header of {} bytes, expected at most {}",
          path.string(), text.size(), kLargestSafetensorsHeader);
  const auto length = std::bit_cast<std::array<std::byte, kLengthBytes>>(std::uint64_t{text.size()});
  file_.append(length);
  file_.append(text);
  file_bytes_ = kLengthBytes + text.size() + offset;
  advance();
}

void SafetensorsWriter::advance() {
  while (current_ < tensors_.size() && written_ == bytes_of(tensors_[current_])) {
    ++current_;
    written_ = 0;
  }
}

void SafetensorsWriter::append(std::string_view name, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  require(current_ < tensors_.size(), "safetensors: bytes of '{}', but every tensor is complete", name);
  const auto& due = tensors_[current_];
  require(name == due.name, "safetensors: bytes of '{}', expected those of '{}'", name, due.name);
  require(bytes.size() <= bytes_of(due) - written_, "safetensors: {} more bytes of '{}', expected at most {}",
          bytes.size(), name, bytes_of(due) - written_);
  file_.append(bytes);
  written_ += bytes.size();
  advance();
}

FileDigest SafetensorsWriter::finish() {
  require(current_ == tensors_.size(), "safetensors: {}: bytes of '{}' are missing", file_.path().string(),
          current_ < tensors_.size() ? tensors_[current_].name : "");
  return file_.finish();
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string label = shown(path.string(), 512);
  const auto fail = [&](const std::string& what) { throw DataError(fmt::format("safetensors: {}: {}", label, what)); };
  if (file_.size() < kLengthBytes) fail(fmt::format("{} bytes, expected at least {}", file_.size(), kLengthBytes));
  std::array<std::byte, kLengthBytes> stored{};
  file_.read(0, stored);
  const auto length = std::bit_cast<std::uint64_t>(stored);
  if (length > kLargestSafetensorsHeader)
    fail(fmt::format("a header of {} bytes, expected at most {}", length, kLargestSafetensorsHeader));
  if (length > file_.size() - kLengthBytes) {
    fail(fmt::format("a header of {} bytes in a file of {}", length, file_.size()));
  }
  std::string header(length, '\0');
  file_.read(kLengthBytes, std::as_writable_bytes(std::span(header)));
  if (!header.starts_with('{')) fail("its header does not start with '{'");

  SafetensorsHeader parsed = read_safetensors_header(header, label);
  tensors_ = in_order_of_bytes(std::move(parsed.tensors));
  metadata_ = std::move(parsed.metadata);
  data_begin_ = kLengthBytes + length;

  index_names(label);
  const std::uint64_t data_bytes = file_.size() - data_begin_;
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const SafetensorsEntry& tensor = tensors_[i];
    if (tensor.end > data_bytes) {
      fail(fmt::format("tensor '{}': ends at byte {} of {}: the file is cut short", shown_tensor_name(tensor.name),
                       tensor.end, data_bytes));
    }
    if (tensor.begin < expected) {
      fail(fmt::format("tensor '{}' overlaps '{}'", shown_tensor_name(tensor.name),
                       shown_tensor_name(tensors_[i - 1].name)));
    }
    if (tensor.begin > expected) {
      fail(fmt::format("tensor '{}': {} unused bytes before it", shown_tensor_name(tensor.name),
                       tensor.begin - expected));
    }
    expected = tensor.end;
  }
  if (expected != data_bytes) {
    fail(fmt::format("{} bytes behind the last tensor{}", data_bytes - expected,
                     tensors_.empty() ? std::string() : fmt::format(" '{}'", shown_tensor_name(tensors_.back().name))));
  }
}

void SafetensorsFile::index_names(const std::string& label) {
  by_name_.reserve(tensors_.size());
  for (const SafetensorsEntry& tensor : tensors_) by_name_.push_back({hash_of(tensor.name), by_name_.size()});
  // Equal hashes are ordered by name: a file made of them is sorted in the same time.
  std::sort(by_name_.begin(), by_name_.end(), [&](const NameIndex& a, const NameIndex& b) {
    return a.hash != b.hash ? a.hash < b.hash : tensors_[a.tensor].name < tensors_[b.tensor].name;
  });
  const auto again = std::adjacent_find(by_name_.begin(), by_name_.end(), [&](const NameIndex& a, const NameIndex& b) {
    return a.hash == b.hash && tensors_[a.tensor].name == tensors_[b.tensor].name;
  });
  if (again == by_name_.end()) return;
  throw DataError(fmt::format("safetensors: {}: tensor '{}' is given twice", label,
                              shown_tensor_name(tensors_[again->tensor].name)));
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const std::uint64_t hash = hash_of(name);
  auto found = std::lower_bound(by_name_.begin(), by_name_.end(), hash,
                                [](const NameIndex& entry, std::uint64_t wanted) { return entry.hash < wanted; });
  for (; found != by_name_.end() && found->hash == hash; ++found) {
    if (tensors_[found->tensor].name == name) return &tensors_[found->tensor];
  }
  return nullptr;
}

const SafetensorsEntry& SafetensorsFile::at(std::string_view name) const {
  const SafetensorsEntry* tensor = find(name);
  if (tensor == nullptr) throw DataError(fmt::format("safetensors: {}: no tensor '{}'", path().string(), name));
  return *tensor;
}

void SafetensorsFile::read(const SafetensorsEntry& tensor, std::span<std::byte> to) const {
  require(to.size() == tensor.end - tensor.begin, "safetensors: {} bytes for tensor '{}', expected {}", to.size(),
          tensor.name, tensor.end - tensor.begin);
  file_.read(data_begin_ + tensor.begin, to);
}

std::vector<std::byte> SafetensorsFile::read_bytes(std::string_view name) const {
  const SafetensorsEntry& tensor = at(name);
  std::vector<std::byte> bytes(tensor.end - tensor.begin);
  read(tensor, bytes);
  return bytes;
}

std::vector<double> SafetensorsFile::read_doubles(std::string_view name) const {
  const SafetensorsEntry& tensor = at(name);
  const auto convert = [&]<class T>(T) {
    const std::vector<T> values = read_as<T>(name);
    std::vector<double> doubles(values.size());
    std::transform(values.begin(), values.end(), doubles.begin(), [](T value) { return static_cast<double>(value); });
    return doubles;
  };
  switch (tensor.dtype) {
    case DType::F64:
      return read_as<double>(name);
    case DType::F32:
      return convert(float{});
    case DType::BF16:
      return convert(bfloat16{});
    case DType::I64:
      return convert(std::int64_t{});
    case DType::I32:
      return convert(std::int32_t{});
    case DType::U8:
      return convert(std::uint8_t{});
  }
  return {};
}

void SafetensorsFile::check_dtype(const SafetensorsEntry& tensor, DType expected) const {
  if (tensor.dtype == expected) return;
  throw DataError(fmt::format("safetensors: {}: tensor '{}' is {}, expected {}", path().string(), tensor.name,
                              name_of(tensor.dtype), name_of(expected)));
}

}  // namespace graft
