#include "train/safetensors_header.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <utility>

#include "engine/error.h"
#include "train/config_file.h"

namespace graft {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 62U;

/// At most kMaxRank numbers: extents, or the two offsets.
struct Numbers {
  std::array<std::uint64_t, static_cast<std::size_t>(Shape::kMaxRank)> values{};
  std::size_t count = 0;
  bool given = false;
};

Shape shape_of(const Numbers& list) {
  std::array<std::int64_t, 5> e{};
  static_assert(Shape::kMaxRank == 5);
  for (std::size_t i = 0; i < list.count; ++i) e[i] = static_cast<std::int64_t>(list.values[i]);
  switch (list.count) {
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

class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& label) : text_(text), label_(label) {}

  SafetensorsHeader read() {
    if (const std::size_t bad = first_bad_utf8(text_); bad != std::string_view::npos) {
      at_ = bad;
      fail_json("a byte that is not UTF-8");
    }
    read_object([&](std::string_view name) {
      if (name == kMetadataKey) {
        if (metadata_given_) fail(fmt::format("{} is given twice", kMetadataKey));
        metadata_given_ = true;
        if (const char* kind = kind_unless('{')) fail(fmt::format("{} is {}, expected an object", kMetadataKey, kind));
        read_object([&](std::string_view key) { read_metadata(std::string(key)); });
      } else {
        read_tensor(name);
      }
    });
    skip_space();
    if (at_ != text_.size()) fail_json("text behind the header's end");
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw DataError(fmt::format("safetensors: {}: {}", label_, what));
  }
  [[noreturn]] void fail_tensor(const std::string& what) const {
    fail(fmt::format("tensor '{}': {}", shown_tensor_name(tensor_), what));
  }
  [[noreturn]] void fail_json(std::string_view what) const {
    const std::string message = fmt::format("its header is not valid JSON at byte {}: {}", at_, what);
    if (in_tensor_) fail_tensor(message);
    fail(message);
  }

  [[nodiscard]] char peek() const {
    if (at_ == text_.size()) fail_json("it ends here");
    return text_[at_];
  }
  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }
  /// Passes over `wanted`, or returns false.
  bool accept(char wanted) {
    skip_space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) fail_json(fmt::format("expected '{}'", wanted));
  }

  /// Null if the next value begins with `wanted`, else what it is.
  const char* kind_unless(char wanted) {
    skip_space();
    const char c = peek();
    if (c == wanted) return nullptr;
    switch (c) {
      case '{':
        return "an object";
      case '[':
        return "a list";
      case '"':
        return "a string";
      case 'n':
        return "null";
      case 't':
      case 'f':
        return "a boolean";
      case '-':
        return "a negative number";
      default:
        if (c < '0' || c > '9') fail_json("expected a value");
        return "a number";
    }
  }

  /// Calls `member(key)`, which reads the value, for each member. The key is valid until the value is read.
  template <class Member>
  void read_object(const Member& member) {
    expect('{');
    if (accept('}')) return;
    do {
      if (kind_unless('"') != nullptr) fail_json("expected a name in quotes");
      const std::string_view key = read_string(key_);
      expect(':');
      member(key);
    } while (accept(','));
    expect('}');
  }

  /// A string's content: a part of the text, or `decoded` where there are escapes in it.
  std::string_view read_string(std::string& decoded) {
    expect('"');
    const std::size_t begin = at_;
    bool escapes = false;
    for (;; ++at_) {
      if (!escapes) {
        while (at_ < text_.size() && static_cast<unsigned char>(text_[at_]) >= 0x20 && text_[at_] != '"' &&
               text_[at_] != '\\') {
          ++at_;
        }
      }
      const char c = peek();
      if (static_cast<unsigned char>(c) < 0x20) fail_json("a control character in a string");
      if (c == '"') break;
      if (c != '\\') {
        if (escapes) decoded += c;
        continue;
      }
      if (!escapes) decoded = text_.substr(begin, at_ - begin);
      escapes = true;
      ++at_;
      read_escape(decoded);
    }
    ++at_;
    return escapes ? std::string_view(decoded) : text_.substr(begin, at_ - 1 - begin);
  }

  /// What follows a backslash; leaves the position at its last character.
  void read_escape(std::string& out) {
    constexpr std::string_view kLetters = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (const std::size_t found = kLetters.find(peek()); found != std::string_view::npos) {
      out += kMeanings[found];
      return;
    }
    std::uint32_t point = read_unit();
    if (point >= 0xdc00 && point < 0xe000) fail_json("half a surrogate pair");
    if (point >= 0xd800 && point < 0xdc00) {
      ++at_;
      if (peek() != '\\') fail_json("half a surrogate pair");
      ++at_;
      const std::uint32_t low = read_unit();
      if (low < 0xdc00 || low >= 0xe000) fail_json("half a surrogate pair");
      point = 0x10000 + ((point - 0xd800) << 10U) + (low - 0xdc00);
    }
    const auto put = [&](std::uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (point < 0x80) {
      put(point);
    } else if (point < 0x800) {
      put(0xc0U | (point >> 6U));
      put(0x80U | (point & 0x3fU));
    } else if (point < 0x10000) {
      put(0xe0U | (point >> 12U));
      put(0x80U | ((point >> 6U) & 0x3fU));
      put(0x80U | (point & 0x3fU));
    } else {
      put(0xf0U | (point >> 18U));
      put(0x80U | ((point >> 12U) & 0x3fU));
      put(0x80U | ((point >> 6U) & 0x3fU));
      put(0x80U | (point & 0x3fU));
    }
  }

  /// "u00e4": one unit of UTF-16; leaves the position at its last digit.
  std::uint32_t read_unit() {
    if (peek() != 'u') fail_json("an unknown escape");
    std::uint32_t unit = 0;
    for (int digit = 0; digit < 4; ++digit) {
      ++at_;
      const char c = peek();
      const int value = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (value < 0) fail_json("expected four hexadecimal digits");
      unit = 16 * unit + static_cast<std::uint32_t>(value);
    }
    return unit;
  }

  void read_metadata(std::string key) {
    if (header_.metadata.contains(key)) fail(fmt::format("metadata '{}' is given twice", shown_tensor_name(key)));
    if (header_.metadata.size() == kMostSafetensors) {
      fail(fmt::format("more than {} strings of metadata", kMostSafetensors));
    }
    if (const char* kind = kind_unless('"')) {
      fail(fmt::format("metadata '{}' is {}, expected a string", shown_tensor_name(key), kind));
    }
    std::string decoded;
    const std::string_view value = read_string(decoded);
    header_.metadata.emplace(std::move(key), value);
  }

  void read_tensor(std::string_view name) {
    if (const char* fault = fault_of_tensor_name(name)) {
      fail(fmt::format("tensor '{}' has {}", shown_tensor_name(name), fault));
    }
    tensor_ = name;
    if (header_.tensors.size() == kMostSafetensors) {
      fail_tensor(fmt::format("one more than {} tensors", kMostSafetensors));
    }
    if (const char* kind = kind_unless('{')) {
      fail(fmt::format("tensor '{}' is {}, expected an object", shown_tensor_name(tensor_), kind));
    }
    in_tensor_ = true;
    dtype_given_ = false;
    shape_ = {};
    offsets_ = {};
    read_object([&](std::string_view key) { read_field(key); });
    if (!dtype_given_ || !shape_.given || !offsets_.given) fail_tensor("dtype, shape or data_offsets is missing");
    finish_tensor();
    in_tensor_ = false;
  }

  void read_field(std::string_view key) {
    if (key == "dtype") {
      if (dtype_given_) fail_tensor("dtype is given twice");
      dtype_given_ = true;
      if (const char* kind = kind_unless('"')) fail_tensor(fmt::format("dtype has {}, expected a string", kind));
      dtype_ = read_string(dtype_decoded_);
    } else if (key == "shape") {
      read_numbers("shape", shape_, static_cast<std::size_t>(Shape::kMaxRank), "extents");
    } else if (key == "data_offsets") {
      read_numbers("data_offsets", offsets_, 2, "data_offsets");
    } else {
      fail_tensor(fmt::format("key '{}', expected dtype, shape and data_offsets", shown_tensor_name(key)));
    }
  }

  void read_numbers(const char* field, Numbers& list, std::size_t most, const char* what) {
    if (list.given) fail_tensor(fmt::format("{} is given twice", field));
    list.given = true;
    const auto unexpected = [&](const char* kind) {
      fail_tensor(fmt::format("{} has {}, expected a list of non-negative integers", field, kind));
    };
    if (const char* kind = kind_unless('[')) unexpected(kind);
    ++at_;
    if (accept(']')) return;
    do {
      const char* kind = kind_unless('0');
      if (kind != nullptr && std::string_view(kind) != "a number") unexpected(kind);
      if (list.count == most) fail_tensor(fmt::format("more than {} {}", most, what));
      std::uint64_t value = 0;
      const std::size_t begin = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
        if (__builtin_mul_overflow(value, std::uint64_t{10}, &value) || __builtin_add_overflow(value, digit, &value)) {
          unexpected("a number that is no 64-bit integer");
        }
      }
      if (text_[begin] == '0' && at_ - begin > 1) fail_json("a number that begins with 0");
      const char next = peek();
      if (next == '.' || next == 'e' || next == 'E') unexpected("a number that is no 64-bit integer");
      list.values[list.count++] = value;
    } while (accept(','));
    expect(']');
  }

  void finish_tensor() {
    SafetensorsEntry entry;
    entry.boolean = dtype_ == "BOOL";
    bool known = entry.boolean;
    if (entry.boolean) entry.dtype = DType::U8;
    for (const DType dtype : {DType::F64, DType::F32, DType::BF16, DType::I64, DType::I32, DType::U8}) {
      if (dtype_ != safetensors_dtype_name(dtype)) continue;
      entry.dtype = dtype;
      known = true;
    }
    if (!known) {
      fail_tensor(fmt::format("dtype '{}', expected F64, F32, BF16, I64, I32, U8 or BOOL", shown(dtype_)));
    }
    // Checked with zeros left out, so that elements() cannot overflow on the way to a product of zero.
    std::uint64_t size = size_of(entry.dtype);
    bool empty = false;
    for (std::size_t i = 0; i < shape_.count; ++i) {
      const std::uint64_t extent = shape_.values[i];
      if (extent == 0) empty = true;
      if (extent != 0 && (__builtin_mul_overflow(size, extent, &size) || size > kMaxBytes)) {
        fail_tensor("the product of its extents is too large");
      }
    }
    if (empty) size = 0;
    if (offsets_.count != 2) fail_tensor(fmt::format("{} data_offsets, expected 2", offsets_.count));
    entry.shape = shape_of(shape_);
    entry.begin = offsets_.values[0];
    entry.end = offsets_.values[1];
    if (entry.end < entry.begin || entry.end - entry.begin != size) {
      fail_tensor(fmt::format("bytes {} to {}, expected {} bytes for {} {}", entry.begin, entry.end, size, dtype_,
                              entry.shape.str()));
    }
    entry.name = tensor_;
    header_.tensors.push_back(std::move(entry));
  }

  std::string_view text_;
  const std::string& label_;
  std::size_t at_ = 0;
  SafetensorsHeader header_;
  bool metadata_given_ = false;
  // The tensor at hand.
  std::string tensor_;
  bool in_tensor_ = false;
  bool dtype_given_ = false;
  std::string_view dtype_;
  Numbers shape_, offsets_;
  // Text of strings with escapes; of a key until its value has been looked at, of a dtype until the tensor is done.
  std::string key_, dtype_decoded_;
};

}  // namespace

SafetensorsHeader read_safetensors_header(std::string_view text, const std::string& label) {
  return HeaderReader(text, label).read();
}

const char* safetensors_dtype_name(DType dtype) {
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

const char* fault_of_tensor_name(std::string_view name) {
  static_assert(kLongestTensorName == 1024, "the message says so");
  if (name.empty()) return "an empty name";
  if (name.size() > kLongestTensorName) return "a name of more than 1024 bytes";
  for (std::size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    const bool second_set = byte == 0xc2 && i + 1 < name.size() && static_cast<unsigned char>(name[i + 1]) < 0xa0;
    if (byte < 0x20 || byte == 0x7f || second_set) return "a name with a control character";  // U+0080 to U+009F too
  }
  return nullptr;
}

std::string shown_tensor_name(std::string_view name) {
  constexpr std::size_t kLongest = 128;
  if (name.size() <= kLongestTensorName) return shown(name, kLongest);
  return fmt::format("{}... ({} bytes)", shown(name.substr(0, kLongest), kLongest),
                     name.size());  // megabytes are not copied
}

}  // namespace graft
