#include "train/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "engine/error.h"
#include "engine/require.h"

namespace graft {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and written as it lies");

constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::uint64_t kLengthBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";

const char* stored_name(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return "F64";
    case DType::F32:
      return "F32";
    case DType::BF16:
      return "BF16";
    case DType::I64:
      return "I64";
    case DType::I32:
      return "I32";
    case DType::U8:
      return "U8";
  }
  return "?";
}

std::uint64_t bytes_of(const SafetensorsDeclaration& tensor) {
  return static_cast<std::uint64_t>(tensor.shape.elements()) * size_of(tensor.dtype);
}

std::vector<SafetensorsDeclaration> in_file_order(std::vector<SafetensorsDeclaration> tensors) {
  std::set<std::string_view> names;
  for (const auto& tensor : tensors) {
    require(tensor.name != kMetadataKey, "safetensors: the name {} is reserved", tensor.name);
    require(names.insert(tensor.name).second, "safetensors: tensor '{}' is given twice", tensor.name);
  }
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const auto& a, const auto& b) { return size_of(a.dtype) > size_of(b.dtype); });
  return tensors;
}

Shape shape_of(std::span<const std::int64_t> e) {
  switch (e.size()) {
    case 0:
      return {};
    case 1:
      return {e[0]};
    case 2:
      return {e[0], e[1]};
    case 3:
      return {e[0], e[1], e[2]};
    case 4:
      return {e[0], e[1], e[2], e[3]};
    default:
      return {e[0], e[1], e[2], e[3], e[4]};
  }
}

/// Takes the header apart while it is parsed, which leaves no room for other structure: it is an object of
/// objects, at most one list deeper.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(std::string file) : file_(std::move(file)) {}

  std::vector<SafetensorsEntry> tensors;
  SafetensorsMetadata metadata;

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { unexpected("a number that is no 64-bit integer"); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == nullptr) unexpected("a number");
    list_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::Metadata) {
      metadata[key_] = value;
    } else if (place_ == Place::Tensor && list_ == nullptr && key_ == "dtype") {
      dtype_ = value;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::Outside) {
      place_ = Place::Top;
    } else if (place_ == Place::Top) {
      place_ = key_ == kMetadataKey ? Place::Metadata : Place::Tensor;
      if (place_ == Place::Tensor) begin_tensor();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::Top) {
      if (!names_.insert(name).second) fail(fmt::format("tensor '{}' is given twice", name));
    } else if (place_ == Place::Metadata) {
      if (metadata.contains(name)) fail(fmt::format("metadata '{}' is given twice", name));
    } else {
      if (name != "dtype" && name != "shape" && name != "data_offsets") {
        fail_tensor(fmt::format("key '{}', expected dtype, shape and data_offsets", name));
      }
      const bool again = name == "dtype"   ? dtype_.has_value()
                         : name == "shape" ? shape_.has_value()
                                           : offsets_.has_value();
      if (again) fail_tensor(fmt::format("{} is given twice", name));
    }
    key_ = name;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::Tensor) finish_tensor();
    place_ = place_ == Place::Top ? Place::Outside : Place::Top;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::Tensor || list_ != nullptr || key_ == "dtype") unexpected("a list");
    auto& target = key_ == "shape" ? shape_ : offsets_;
    list_ = &target.emplace();
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(fmt::format("its header is not valid JSON at byte {}", position));
  }

 private:
  enum class Place : std::uint8_t { Outside, Top, Metadata, Tensor };

  [[noreturn]] void fail(const std::string& what) const {
    throw DataError(fmt::format("safetensors: {}: {}", file_, what));
  }
  [[noreturn]] void fail_tensor(const std::string& what) const { fail(fmt::format("tensor '{}': {}", tensor_, what)); }
  [[noreturn]] void unexpected(const char* what) const {
    switch (place_) {
      case Place::Outside:
        fail(fmt::format("its header is {}, expected an object", what));
      case Place::Top:
        fail(fmt::format("tensor '{}' is {}, expected an object", key_, what));
      case Place::Metadata:
        fail(fmt::format("metadata '{}' is {}, expected a string", key_, what));
      case Place::Tensor:
        fail_tensor(fmt::format("{} has {}, expected {}", key_, what,
                                key_ == "dtype" ? "a string" : "a list of non-negative integers"));
    }
    fail("its header is not of the expected form");
  }

  void begin_tensor() {
    tensor_ = key_;
    dtype_.reset();
    shape_.reset();
    offsets_.reset();
  }

  void finish_tensor() {
    if (!dtype_ || !shape_ || !offsets_) fail_tensor("dtype, shape or data_offsets is missing");
    SafetensorsEntry entry;
    entry.name = tensor_;
    entry.boolean = *dtype_ == "BOOL";
    bool known = entry.boolean;
    if (entry.boolean) entry.dtype = DType::U8;
    for (const DType dtype : {DType::F64, DType::F32, DType::BF16, DType::I64, DType::I32, DType::U8}) {
      if (*dtype_ != stored_name(dtype)) continue;
      entry.dtype = dtype;
      known = true;
    }
    if (!known) fail_tensor(fmt::format("dtype '{}', expected F64, F32, BF16, I64, I32, U8 or BOOL", *dtype_));
    if (shape_->size() > static_cast<std::size_t>(Shape::kMaxRank)) {
      fail_tensor(fmt::format("{} extents, expected at most {}", shape_->size(), Shape::kMaxRank));
    }
    // Checked with zeros left out, so that elements() cannot overflow on the way to a product of zero.
    std::uint64_t size = size_of(entry.dtype);
    bool empty = false;
    std::vector<std::int64_t> extents;
    for (const std::uint64_t extent : *shape_) {
      if (extent == 0) empty = true;
      if (extent != 0 && (__builtin_mul_overflow(size, extent, &size) || size > kMaxBytes)) {
        fail_tensor("the product of its extents is too large");
      }
      extents.push_back(static_cast<std::int64_t>(extent));
    }
    if (empty) size = 0;
    if (offsets_->size() != 2) fail_tensor(fmt::format("{} data_offsets, expected 2", offsets_->size()));
    entry.shape = shape_of(extents);
    entry.begin = (*offsets_)[0];
    entry.end = (*offsets_)[1];
    if (entry.end < entry.begin || entry.end - entry.begin != size) {
      fail_tensor(fmt::format("bytes {} to {}, expected {} bytes for {} {}", entry.begin, entry.end, size, *dtype_,
                              entry.shape.str()));
    }
    tensors.push_back(std::move(entry));
  }

  static constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 62U;
  std::string file_;
  Place place_ = Place::Outside;
  std::string key_, tensor_;
  std::set<std::string, std::less<>> names_;
  std::optional<std::string> dtype_;
  std::optional<std::vector<std::uint64_t>> shape_, offsets_;
  std::vector<std::uint64_t>* list_ = nullptr;
};

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
    header[tensor.name] = {{"dtype", stored_name(tensor.dtype)}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(text.size()), 8)), ' ');
  require(text.size() <= kMaxHeader, "safetensors: {}: a header of {} bytes, expected at most {}", path.string(),
          text.size(), kMaxHeader);
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
  const std::string shown = path.string();
  const auto fail = [&](const std::string& what) { throw DataError(fmt::format("safetensors: {}: {}", shown, what)); };
  if (file_.size() < kLengthBytes) fail(fmt::format("{} bytes, expected at least {}", file_.size(), kLengthBytes));
  std::array<std::byte, kLengthBytes> stored{};
  file_.read(0, stored);
  const auto length = std::bit_cast<std::uint64_t>(stored);
  if (length > kMaxHeader) fail(fmt::format("a header of {} bytes, expected at most {}", length, kMaxHeader));
  if (length > file_.size() - kLengthBytes) {
    fail(fmt::format("a header of {} bytes in a file of {}", length, file_.size()));
  }
  std::string header(length, '\0');
  file_.read(kLengthBytes, std::as_writable_bytes(std::span(header)));
  if (!header.starts_with('{')) fail("its header does not start with '{'");

  HeaderHandler handler(shown);
  nlohmann::json::sax_parse(header, &handler);
  tensors_ = std::move(handler.tensors);
  metadata_ = std::move(handler.metadata);
  data_begin_ = kLengthBytes + length;

  std::stable_sort(tensors_.begin(), tensors_.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  const std::uint64_t data_bytes = file_.size() - data_begin_;
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const SafetensorsEntry& tensor = tensors_[i];
    if (tensor.end > data_bytes) {
      fail(fmt::format("tensor '{}': ends at byte {} of {}: the file is cut short", tensor.name, tensor.end,
                       data_bytes));
    }
    if (tensor.begin < expected) {
      fail(fmt::format("tensor '{}' overlaps '{}'", tensor.name, tensors_[i - 1].name));
    }
    if (tensor.begin > expected) {
      fail(fmt::format("tensor '{}': {} unused bytes before it", tensor.name, tensor.begin - expected));
    }
    expected = tensor.end;
    by_name_[tensor.name] = i;
  }
  if (expected != data_bytes) fail(fmt::format("{} bytes behind the last tensor", data_bytes - expected));
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
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
