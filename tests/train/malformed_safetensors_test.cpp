// Files that are almost right: a sound file is drawn, one thing in it is broken, and the reader has to say what.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "train/safetensors.h"

namespace graft {
namespace {

using test::TemporaryDirectory;
using test::write_contents;

using Random = std::mt19937_64;

std::uint64_t below(Random& random, std::uint64_t count) { return random() % count; }

template <class T, std::size_t N>
const T& one_of(Random& random, const std::array<T, N>& list) {
  return list[below(random, N)];
}

/// A tensor of a header: its fields as they are written, in their order.
struct Written {
  std::string name;  // as JSON
  std::vector<std::pair<std::string, std::string>> fields;
  std::uint64_t begin = 0, end = 0;

  std::string& field(std::string_view key) {
    return std::find_if(fields.begin(), fields.end(), [&](const auto& field) { return field.first == key; })->second;
  }
  void erase(std::string_view key) {
    std::erase_if(fields, [&](const auto& field) { return field.first == key; });
  }
  void move_to(std::uint64_t first, std::uint64_t last) {
    begin = first;
    end = last;
    field("data_offsets") = fmt::format("[{},{}]", first, last);
  }
  [[nodiscard]] std::string text() const {
    std::string out = fmt::format("\"{}\":{{", name);
    for (const auto& [key, value] : fields) {
      out += fmt::format("{}\"{}\":{}", out.back() == '{' ? "" : ",", key, value);
    }
    return out + "}";
  }
};

struct File {
  std::vector<Written> tensors;
  std::uint64_t data = 0;    // bytes
  std::string header;        // overrides the tensors' if not empty
  std::int64_t length = -1;  // overrides the header's length
  std::string culprit;       // the tensor the message has to name; empty if there is none

  [[nodiscard]] std::string header_text() const {
    if (!header.empty()) return header;
    std::string out = "{";
    for (const Written& tensor : tensors) out += (out.size() > 1 ? "," : "") + tensor.text();
    return out + "}";
  }
  [[nodiscard]] std::string bytes() const {
    const std::string text = header_text();
    const auto stored = length < 0 ? static_cast<std::uint64_t>(text.size()) : static_cast<std::uint64_t>(length);
    std::string out(sizeof(stored), '\0');
    std::memcpy(out.data(), &stored, sizeof(stored));
    return out + text + std::string(data, '\x5a');
  }
};

File sound_file(Random& random) {
  constexpr std::array<std::pair<const char*, std::uint64_t>, 7> kDTypes = {
      {{"F64", 8}, {"I64", 8}, {"F32", 4}, {"I32", 4}, {"BF16", 2}, {"U8", 1}, {"BOOL", 1}}};
  constexpr std::array<const char*, 4> kStems = {"blocks", "mixer.in_proj", "embedding", "\u03b2"};
  File file;
  const std::uint64_t count = 2 + below(random, 5);
  for (std::uint64_t i = 0; i < count; ++i) {
    Written tensor;
    tensor.name = fmt::format("{}.{}.weight", one_of(random, kStems), i);
    const auto& [dtype, bytes] = one_of(random, kDTypes);
    std::uint64_t size = bytes;
    std::string shape;
    for (std::uint64_t rank = below(random, 4); rank > 0; --rank) {
      const std::uint64_t extent = 1 + below(random, 4);
      size *= extent;
      shape += fmt::format("{}{}", shape.empty() ? "" : ",", extent);
    }
    tensor.fields = {{"dtype", fmt::format("\"{}\"", dtype)}, {"shape", "[" + shape + "]"}, {"data_offsets", ""}};
    tensor.move_to(file.data, file.data + size);
    std::shuffle(tensor.fields.begin(), tensor.fields.end(), random);
    file.data += size;
    file.tensors.push_back(std::move(tensor));
  }
  return file;
}

/// Some tensor, which becomes the one to be named.
Written& pick(File& file, Random& random) {
  Written& tensor = file.tensors[below(random, file.tensors.size())];
  file.culprit = tensor.name;
  return tensor;
}

/// Replaces one number of a tensor's shape or offsets.
void set_number(File& file, Random& random, const std::string& number) {
  Written& tensor = pick(file, random);
  const bool shape = below(random, 2) == 0;
  tensor.field(shape ? "shape" : "data_offsets") = shape ? fmt::format("[{}]", number)
                                                   : below(random, 2) == 0
                                                       ? fmt::format("[{},{}]", number, tensor.end)
                                                       : fmt::format("[{},{}]", tensor.begin, number);
}

struct Fault {
  const char* name;
  void (*apply)(File&, Random&);
};

void header_length(File& file, Random& random) {
  const auto size = static_cast<std::int64_t>(file.bytes().size());
  switch (below(random, 4)) {
    case 0:
      file.length = size - 7 + static_cast<std::int64_t>(below(random, 1000));
      break;
    case 1:
      file.length = static_cast<std::int64_t>(kLargestSafetensorsHeader + 1 + below(random, 1U << 30U));
      break;
    case 2:
      file.length = static_cast<std::int64_t>(random() >> 1U);
      break;
    default:
      file.length = static_cast<std::int64_t>(below(random, 2));  // no room for "{}"
  }
}

void truncated_header(File& file, Random& random) {
  const std::string text = file.header_text();
  file.header = text.substr(0, 1 + below(random, text.size() - 1));
  file.data = 0;
}

void first_byte(File& file, Random& random) {
  constexpr std::array<const char*, 6> kBefore = {" ", "[", "\xef\xbb\xbf", "\n", "\"x\":", "null"};
  file.header = one_of(random, kBefore) + file.header_text();
}

void json_syntax(File& file, Random& random) {
  constexpr std::array<const char*, 9> kInstead = {"'", "{]", ",,", "\x01", "\xff", "\"\"", "/**/", "NaN", "\\"};
  std::string text = file.header_text();
  std::vector<std::size_t> structure;  // places where exactly one character is right
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (std::string_view("{}[]:,").find(text[i]) != std::string_view::npos) structure.push_back(i);
  }
  file.header = text.replace(structure[below(random, structure.size())], 1, one_of(random, kInstead));
}

void after_the_header(File& file, Random& random) {
  constexpr std::array<const char*, 5> kMore = {"{}", "}", ",", "x", "\0x"};
  file.header = file.header_text() + std::string(below(random, 9), ' ') + one_of(random, kMore);
  file.header += '!';
}

void nesting(File& file, Random& random) {
  const std::uint64_t depth = 1 + below(random, below(random, 2) == 0 ? 4 : 3000);
  constexpr std::array<const char*, 3> kFields = {"dtype", "shape", "data_offsets"};
  std::string text;
  const bool lists = below(random, 2) == 0;
  for (std::uint64_t i = 0; i < depth; ++i) text += lists ? "[" : "{\"a\":";
  text += "1";
  for (std::uint64_t i = 0; i < depth; ++i) text += lists ? "]" : "}";
  pick(file, random).field(one_of(random, kFields)) = lists ? "[" + text + "]" : text;
}

void wrong_type(File& file, Random& random) {
  constexpr std::array<const char*, 4> kNoList = {"null", "true", "\"2\"", "2"};
  constexpr std::array<const char*, 4> kNoText = {"null", "false", "7", "[]"};
  Written& tensor = pick(file, random);
  const std::uint64_t field = below(random, 3);
  if (field == 0) {
    tensor.field("dtype") = one_of(random, kNoText);
  } else {
    const std::string value = one_of(random, kNoList);
    tensor.field(field == 1 ? "shape" : "data_offsets") =
        below(random, 2) == 0 || value == "2" ? value : "[" + value + "]";
  }
}

void duplicate_tensor(File& file, Random& random) {
  Written again = pick(file, random);
  const std::uint64_t size = again.end - again.begin;
  again.move_to(file.data, file.data + size);
  file.data += size;
  file.tensors.insert(file.tensors.begin() + static_cast<std::ptrdiff_t>(below(random, file.tensors.size() + 1)),
                      again);
}

void duplicate_field(File& file, Random& random) {
  auto& fields = pick(file, random).fields;
  const auto again = fields[below(random, fields.size())];
  fields.insert(fields.begin() + static_cast<std::ptrdiff_t>(below(random, fields.size() + 1)), again);
}

void missing_field(File& file, Random& random) {
  auto& fields = pick(file, random).fields;
  std::shuffle(fields.begin(), fields.end(), random);
  fields.resize(below(random, 3));
}

void extra_field(File& file, Random& random) {
  constexpr std::array<const char*, 6> kKeys = {"strides", "Dtype", "", "shape ", "offset", "\\u0000dtype"};
  auto& fields = pick(file, random).fields;
  fields.insert(fields.begin() + static_cast<std::ptrdiff_t>(below(random, fields.size() + 1)),
                {one_of(random, kKeys), "[1]"});
}

void unknown_dtype(File& file, Random& random) {
  constexpr std::array<const char*, 9> kDTypes = {"F16",  "f32", "F8_E4M3", "",          "F32 ",
                                                  "I128", "C64", "U16",     "\\u001b[2J"};
  pick(file, random).field("dtype") = fmt::format("\"{}\"", one_of(random, kDTypes));
}

void negative_number(File& file, Random& random) {
  set_number(file, random, fmt::format("-{}", below(random, 3) == 0 ? random() >> 1U : below(random, 4)));
}

void fraction(File& file, Random& random) {
  constexpr std::array<const char*, 6> kNumbers = {"1.0", "2.5", "1e0", "0.1e1", "1E+1", "1e-400"};
  set_number(file, random, one_of(random, kNumbers));
}

void huge_number(File& file, Random& random) {
  constexpr std::array<const char*, 6> kNumbers = {"18446744073709551616", "18446744073709551615",
                                                   "9223372036854775808",  "1e400",
                                                   "4611686018427387904",  "99999999999999999999999999999999"};
  set_number(file, random, one_of(random, kNumbers));
}

void product_overflow(File& file, Random& random) {
  constexpr std::array<const char*, 6> kShapes = {"[4294967296,4294967296]",   "[9223372036854775807,2]",
                                                  "[65536,65536,65536,65536]", "[0,18446744073709551615]",
                                                  "[3037000500,3037000500]",   "[2305843009213693952,8]"};
  pick(file, random).field("shape") = one_of(random, kShapes);
}

void too_many_extents(File& file, Random& random) {
  std::string ones = "1";
  for (std::uint64_t i = 5 + below(random, 2000); i > 0; --i) ones += ",1";
  Written& tensor = pick(file, random);
  tensor.field(below(random, 2) == 0 ? "shape" : "data_offsets") = "[" + ones + "]";
}

void wrong_size(File& file, Random& random) {
  Written& tensor = pick(file, random);
  const std::uint64_t size = tensor.end - tensor.begin;
  switch (below(random, 3)) {
    case 0:
      tensor.move_to(tensor.begin, tensor.end + 1 + below(random, 9));
      break;
    case 1:
      tensor.move_to(tensor.begin, tensor.end - 1 - below(random, size));
      break;
    default:
      tensor.move_to(tensor.end, tensor.begin);
  }
}

void overlap(File& file, Random& random) {
  const std::size_t index = 1 + below(random, file.tensors.size() - 1);
  const std::uint64_t back = 1 + below(random, file.tensors[index - 1].end - file.tensors[index - 1].begin);
  for (std::size_t i = index; i < file.tensors.size(); ++i) {
    file.tensors[i].move_to(file.tensors[i].begin - back, file.tensors[i].end - back);
  }
  file.data -= back;
}

void hole(File& file, Random& random) {
  const std::size_t index = below(random, file.tensors.size());
  const std::uint64_t gap = 1 + below(random, 64);
  for (std::size_t i = index; i < file.tensors.size(); ++i) {
    file.tensors[i].move_to(file.tensors[i].begin + gap, file.tensors[i].end + gap);
  }
  file.data += gap;
  file.culprit = file.tensors[index].name;
}

void trailing_bytes(File& file, Random& random) {
  file.data += 1 + below(random, 4096);
  file.culprit = file.tensors.back().name;
}

void cut_short(File& file, Random& random) {
  file.data -= 1 + below(random, file.tensors.back().end - file.tensors.back().begin);
  file.culprit = file.tensors.back().name;
}

void bad_name(File& file, Random& random) {
  constexpr std::array<const char*, 7> kNames = {"", "\\u0000", "a\\u001b[2Jb", "a\\nb", "\\u007f", "\\u009b2J", "\\t"};
  Written& tensor = pick(file, random);
  file.culprit = "";
  if (below(random, 3) == 0) {
    tensor.name = std::string(kLongestTensorName + 1 + below(random, 5000), 'n');
    file.culprit = std::string(64, 'n');
  } else {
    tensor.name = one_of(random, kNames);
  }
}

constexpr Fault kFaults[] = {
    {"header length", header_length},
    {"truncated header", truncated_header},
    {"first byte", first_byte},
    {"JSON syntax", json_syntax},
    {"text after the header", after_the_header},
    {"nesting", nesting},
    {"wrong type", wrong_type},
    {"duplicate tensor", duplicate_tensor},
    {"duplicate field", duplicate_field},
    {"missing field", missing_field},
    {"extra field", extra_field},
    {"unknown dtype", unknown_dtype},
    {"negative number", negative_number},
    {"fraction", fraction},
    {"huge number", huge_number},
    {"product overflow", product_overflow},
    {"too many extents", too_many_extents},
    {"wrong size", wrong_size},
    {"overlap", overlap},
    {"hole", hole},
    {"trailing bytes", trailing_bytes},
    {"cut short", cut_short},
    {"bad name", bad_name},
};
constexpr int kVariants = 25;

struct Refusal {
  std::string message;      // empty: accepted
  double milliseconds = 0;  // of this process, whatever else the machine does
};

Refusal open_file(const std::filesystem::path& path) {
  Refusal refusal;
  const std::clock_t begin = std::clock();
  try {
    const SafetensorsFile file(path);
  } catch (const DataError& error) {
    refusal.message = error.what();
  }
  refusal.milliseconds = 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  return refusal;
}

double resident_mebibytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// The goal is 100 ms, which the printed figures of an optimised build show; the bound leaves room for sanitizers.
constexpr double kLooseMilliseconds = 3000;

TEST_CASE("malformed safetensors: every class of fault is refused, by the tensor's name") {
  static_assert(std::size(kFaults) >= 17);
  const TemporaryDirectory directory;
  const auto path = directory / "malformed.safetensors";
  const double before = resident_mebibytes();
  double slowest = 0;
  int refused = 0;
  for (std::size_t index = 0; index < std::size(kFaults); ++index) {
    for (int variant = 0; variant < kVariants; ++variant) {
      Random random(1000 * index + static_cast<std::uint64_t>(variant));
      File file = sound_file(random);
      write_contents(path, file.bytes());
      const Refusal sound = open_file(path);
      REQUIRE(sound.message == "");
      kFaults[index].apply(file, random);
      write_contents(path, file.bytes());
      const Refusal refusal = open_file(path);
      CAPTURE(kFaults[index].name);
      CAPTURE(variant);
      CAPTURE(file.header_text().substr(0, 2000));
      CAPTURE(refusal.message);
      CHECK(refusal.message.starts_with("safetensors: "));
      CHECK(refusal.message.find("malformed.safetensors") != std::string::npos);
      if (!file.culprit.empty()) CHECK(refusal.message.find('\'' + file.culprit) != std::string::npos);
      CHECK(refusal.message.size() < 1024);
      CHECK(std::none_of(refusal.message.begin(), refusal.message.end(),
                         [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }));
      CHECK(refusal.milliseconds < kLooseMilliseconds);
      slowest = std::max(slowest, refusal.milliseconds);
      refused += refusal.message.empty() ? 0 : 1;
    }
  }
  const double growth = resident_mebibytes() - before;
  MESSAGE(fmt::format("{} of {} files refused ({} classes); slowest {:.2f} ms; {:.1f} MiB more memory", refused,
                      std::size(kFaults) * kVariants, std::size(kFaults), slowest, growth));
  CHECK(growth < 64);  // sanitizers keep what was freed
}

TEST_CASE("malformed safetensors: the largest headers are refused in time") {
  const TemporaryDirectory directory;
  const auto path = directory / "large.safetensors";
  const auto tensors = [](std::size_t count, const char* last) {
    std::string text = "{";
    for (std::size_t i = 0; i < count; ++i) {
      text += fmt::format("\"layers.{}.mixer.weight\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{},{}]}},", i,
                          4 * i, 4 * i + 4);
    }
    return text + last + "}";
  };
  const auto spread = [](std::string_view begin, char fill, std::string_view end) {
    return std::string(begin) + std::string(kLargestSafetensorsHeader - begin.size() - end.size(), fill) +
           std::string(end);
  };
  std::string metadata = "{\"__metadata__\":{";
  for (std::size_t i = 0; i <= kMostSafetensors; ++i) metadata += fmt::format("{}\"{}\":\"\"", i == 0 ? "" : ",", i);
  struct Case {
    const char* what;
    std::string header;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"100,001 tensors", tensors(kMostSafetensors, R"("one_more":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
       "tensor 'one_more': one more than 100000 tensors"},
      {"the last of 100,000 wrong", tensors(kMostSafetensors - 1, R"("last":{"dtype":"F31"})"), "'last'"},
      {"100,000 tensors without data",
       tensors(kMostSafetensors - 1, R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
       "the file is cut short"},
      {"100,001 strings of metadata", metadata + "}}", "more than 100000 strings of metadata"},
      {"16 MiB of spaces", spread("{", ' ', "x"), "not valid JSON"},
      {"16 MiB of a name", spread("{\"", 'n', "\":1}"), "a name of more than 1024 bytes"},
      {"16 MiB of a dtype", spread(R"({"a":{"dtype":")", 'F', R"("}})"), "tensor 'a'"},
      {"16 MiB of a number", spread(R"({"a":{"shape":[)", '1', "]}}"), "tensor 'a'"},
      {"16 MiB of brackets", spread(R"({"a":{"shape":)", '[', ""), "tensor 'a': shape has a list"},
      {"16 MiB of metadata", spread(R"({"__metadata__":{"k":")", 'v', R"("},"a":1})"), "tensor 'a' is a number"},
  };
  for (const Case& c : cases) {
    File file;
    file.header = c.header;
    write_contents(path, file.bytes());
    const Refusal refusal = open_file(path);
    CAPTURE(c.what);
    CAPTURE(refusal.message);
    CHECK(refusal.message.find(c.message) != std::string::npos);
    CHECK(refusal.milliseconds < kLooseMilliseconds);
    MESSAGE(fmt::format("{}: {:.0f} ms", c.what, refusal.milliseconds));
  }
  // A length that the file has but no header needs is not believed either: nothing of this is read.
  write_contents(path, std::string("\xff\xff\xff\xff\xff\0\0\0{", 9));
  std::filesystem::resize_file(path, std::uint64_t{1} << 40U);
  CHECK(open_file(path).message.find("expected at most 16777216") != std::string::npos);
}

}  // namespace
}  // namespace graft
