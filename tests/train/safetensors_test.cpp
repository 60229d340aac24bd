#include "train/safetensors.h"

#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"

namespace graft {
namespace {

using test::contents;
using test::TemporaryDirectory;
using test::write_contents;

/// A file with this header, as it stands, and `data_bytes` zero bytes.
std::filesystem::path handmade(const TemporaryDirectory& directory, const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  const auto path = directory / "handmade.safetensors";
  write_contents(path, text + header + std::string(data_bytes, '\0'));
  return path;
}

template <class T>
void write_one(SafetensorsWriter& writer, const std::string& name, const std::vector<T>& values) {
  writer.append(name, std::as_bytes(std::span(values)));
}

TEST_CASE("safetensors: every dtype comes back bit for bit") {
  const TemporaryDirectory directory;
  const auto path = directory / "all.safetensors";
  const std::vector<float> f32 = {1.5F, -0.F, std::numeric_limits<float>::infinity(), 1e-40F, 0, 3};
  const std::vector<double> f64 = {0.1, -2e300};
  const std::vector<bfloat16> bf16 = {bfloat16(1.F), bfloat16(-3.5F), bfloat16(0.F)};
  const std::vector<std::int64_t> i64 = {std::numeric_limits<std::int64_t>::min(), 7};
  const std::vector<std::int32_t> i32 = {-5};
  const std::vector<std::uint8_t> u8 = {0, 255, 3};
  SafetensorsWriter writer(path,
                           {{"bytes", DType::U8, {3}},
                            {"half", DType::BF16, {3, 1}},
                            {"single", DType::F32, {2, 3}},
                            {"scalar", DType::I32, {}},
                            {"empty", DType::F32, {4, 0}},
                            {"double", DType::F64, {2}},
                            {"long \"name\" \u00e9", DType::I64, {1, 2, 1}}},
                           {{"format", "pt"}});
  std::vector<std::string> order;
  for (const auto& tensor : writer.order()) order.push_back(tensor.name);
  CHECK(order ==
        std::vector<std::string>{"double", "long \"name\" \u00e9", "single", "scalar", "empty", "half", "bytes"});
  write_one(writer, "double", f64);
  write_one(writer, "long \"name\" \u00e9", i64);
  writer.append("single", std::as_bytes(std::span(f32)).first(10));  // in pieces
  writer.append("single", std::as_bytes(std::span(f32)).subspan(10));
  write_one(writer, "scalar", i32);
  write_one(writer, "half", bf16);
  write_one(writer, "bytes", u8);
  const FileDigest digest = writer.finish();

  CHECK(digest == digest_of_file(path));
  CHECK(digest.bytes == std::filesystem::file_size(path));
  CHECK(digest.bytes == writer.file_bytes());
  const std::string text = contents(path);
  std::uint64_t header = 0;
  std::memcpy(&header, text.data(), 8);
  CHECK(header % 8 == 0);

  const SafetensorsFile file(path);
  CHECK(file.metadata() == SafetensorsMetadata{{"format", "pt"}});
  CHECK(file.tensors().size() == 7);
  for (const auto& tensor : file.tensors()) CHECK(tensor.begin % size_of(tensor.dtype) == 0);
  CHECK(file.read_as<double>("double") == f64);
  CHECK(file.read_as<std::int64_t>("long \"name\" \u00e9") == i64);
  CHECK(file.at("long \"name\" \u00e9").shape == Shape{1, 2, 1});
  const auto singles = file.read_as<float>("single");
  CHECK(std::memcmp(singles.data(), f32.data(), sizeof(float) * f32.size()) == 0);
  CHECK(file.at("scalar").shape == Shape{});
  CHECK(file.read_as<std::int32_t>("scalar") == i32);
  CHECK(file.read_doubles("half") == std::vector<double>{1, -3.5, 0});
  CHECK(file.read_doubles("bytes") == std::vector<double>{0, 255, 3});
  CHECK(file.read_bytes("empty").empty());
  CHECK(file.find("nothing") == nullptr);
  CHECK_THROWS_WITH_AS((void)file.at("nothing"), doctest::Contains("no tensor 'nothing'"), DataError);
  CHECK_THROWS_WITH_AS((void)file.read_as<float>("double"), doctest::Contains("'double' is float64, expected float32"),
                       DataError);
}

TEST_CASE("safetensors: a file without tensors") {
  const TemporaryDirectory directory;
  SafetensorsWriter(directory / "none", {}).finish();
  CHECK(SafetensorsFile(directory / "none").tensors().empty());
}

TEST_CASE("safetensors: BOOL is read as bytes") {
  const TemporaryDirectory directory;
  const auto path = handmade(directory, R"({"mask":{"dtype":"BOOL","shape":[2,2],"data_offsets":[0,4]}}   )", 4);
  const SafetensorsFile file(path);
  CHECK(file.at("mask").boolean);
  CHECK(file.at("mask").dtype == DType::U8);
  CHECK(file.read_doubles("mask") == std::vector<double>(4, 0.0));
}

TEST_CASE("safetensors: the writer refuses what would give a wrong file") {
  const TemporaryDirectory directory;
  const auto path = directory / "x";
  const std::vector<std::byte> bytes(16);
  CHECK_THROWS_WITH_AS(SafetensorsWriter(path, {{"a", DType::F32, {1}}, {"a", DType::F32, {1}}}),
                       doctest::Contains("'a' is given twice"), ArgumentError);
  CHECK_THROWS_WITH_AS(SafetensorsWriter(path, {{"__metadata__", DType::F32, {1}}}), doctest::Contains("reserved"),
                       ArgumentError);
  SafetensorsWriter writer(path, {{"a", DType::F32, {2}}, {"b", DType::F32, {1}}});
  CHECK_THROWS_WITH_AS(writer.append("b", std::span(bytes).first(4)), doctest::Contains("expected those of 'a'"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(writer.append("a", bytes), doctest::Contains("16 more bytes of 'a', expected at most 8"),
                       ArgumentError);
  writer.append("a", std::span(bytes).first(8));
  CHECK_THROWS_WITH_AS(writer.finish(), doctest::Contains("bytes of 'b' are missing"), ArgumentError);
  CHECK_THROWS_AS(SafetensorsWriter(directory / "no" / "x", {}), EnvironmentError);
}

TEST_CASE("safetensors: damaged files are refused, naming file and tensor") {
  const TemporaryDirectory directory;
  struct Case {
    std::string header;
    std::size_t data;
    const char* message;
  };
  const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::vector<Case> cases = {
      {"[]", 0, "does not start with '{'"},
      {" {}", 0, "does not start with '{'"},
      {"{", 0, "not valid JSON"},
      {"{} {}", 0, "not valid JSON"},
      {"{\"a\xff\":{}}", 0, "not valid JSON"},
      {R"({"a":1})", 0, "tensor 'a' is a number, expected an object"},
      {R"({"a":[]})", 0, "tensor 'a' is a list, expected an object"},
      {R"({"a":{}})", 0, "tensor 'a': dtype, shape or data_offsets is missing"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, "tensor 'a': dtype, shape or data_offsets is missing"},
      {R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,8]}})", 8, "tensor 'a': shape has an object"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "tensor 'a': shape has a list"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "tensor 'a': shape has a negative number"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8,
       "shape has a number that is no 64-bit integer"},
      {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8, "tensor 'a': shape has a string"},
      {R"({"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8, "tensor 'a': dtype has a number, expected a string"},
      {R"({"a":{"dtype":"F7","shape":[2],"data_offsets":[0,8]}})", 8, "tensor 'a': dtype 'F7', expected F64"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, "tensor 'a': key 'x'"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8,
       "tensor 'a': dtype is given twice"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8, "tensor 'a': more than 2 data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "tensor 'a': bytes 8 to 0, expected 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "tensor 'a': bytes 0 to 8, expected 12 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,2],"data_offsets":[0,8]}})", 8, "tensor 'a': more than 5 extents"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "extents is too large"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]}})", 0, "extents is too large"},
      {"{" + good + "," + good + "}", 16, "tensor 'a' is given twice"},
      {"{" + good + "}", 7, "tensor 'a': ends at byte 8 of 7: the file is cut short"},
      {"{" + good + "}", 9, "1 bytes behind the last tensor"},
      {"{" + good + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "tensor 'b' overlaps 'a'"},
      {"{" + good + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16, "tensor 'b': 4 unused bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "tensor 'a': 4 unused bytes"},
      {R"({"__metadata__":{"k":1}})", 0, "metadata 'k' is a number, expected a string"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "metadata 'k' is given twice"},
      {R"({"__metadata__":{"k":{}}})", 0, "metadata 'k' is an object, expected a string"},
      {"{\"a\":" + std::string(100000, '['), 0, "tensor 'a' is a list"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.header.substr(0, 200));
    const auto path = handmade(directory, c.header, c.data);
    CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains(c.message), DataError);
    CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains("handmade.safetensors"), DataError);
  }
}

TEST_CASE("safetensors: header lengths that cannot be") {
  const TemporaryDirectory directory;
  const auto path = directory / "x";
  CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains("no such file"), DataError);
  CHECK_THROWS_WITH_AS(SafetensorsFile{directory.path()}, doctest::Contains("not a regular file"), DataError);
  write_contents(path, "short");
  CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains("5 bytes, expected at least 8"), DataError);
  write_contents(path, std::string(7, '\0') + '\x7f' + "{}");
  CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains("expected at most 16777216"), DataError);
  write_contents(path, std::string("\x03\0\0\0\0\0\0\0{}", 10));
  CHECK_THROWS_WITH_AS(SafetensorsFile{path}, doctest::Contains("a header of 3 bytes in a file of 10"), DataError);
}

}  // namespace
}  // namespace graft
