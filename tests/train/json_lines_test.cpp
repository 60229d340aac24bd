#include "train/json_lines.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "engine/error.h"
#include "tests/support/process_limits.h"
#include "tests/support/temporary_directory.h"

namespace graft {
namespace {

using nlohmann::ordered_json;
using test::contents;
using test::FileSizeLimit;
using test::TemporaryDirectory;
using test::write_contents;

TEST_CASE("json lines: one object a line, numbers that are not finite as strings") {
  const TemporaryDirectory directory;
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  JsonLines lines(directory / "metrics.jsonl");
  lines.append({{"step", 10}, {"loss", nan}, {"positions", {1.5, inf, -inf}}, {"summary", {{"last", inf}}}});
  CHECK(contents(lines.path()) ==
        "{\"step\":10,\"loss\":\"nan\",\"positions\":[1.5,\"inf\",\"-inf\"],\"summary\":{\"last\":\"inf\"}}\n");
  lines.append({{"step", 20}, {"name", "a\nb\xff"}});  // neither a line break nor invalid text breaks the line
  lines.sync();
  const std::string text = contents(lines.path());
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  CHECK(lines.bytes() == text.size());

  const auto first = nlohmann::json::parse(text.substr(0, text.find('\n')));
  CHECK(std::isnan(number_of(first["loss"])));
  CHECK(number_of(first["positions"][2]) == -inf);
  CHECK(number_of(first["step"]) == 10);
  CHECK_THROWS_AS((void)number_of("ten"), DataError);
}

TEST_CASE("json lines: the lines of an array come in one write, or none does") {
  const TemporaryDirectory directory;
  JsonLines lines(directory / "eval.jsonl");
  nlohmann::ordered_json several = nlohmann::ordered_json::array();
  several.push_back({{"step", 1}, {"suite", "a"}});
  several.push_back({{"step", 1}, {"suite", "b"}});
  lines.append(several);
  lines.append({{"step", 2}});
  CHECK(contents(lines.path()) == "{\"step\":1,\"suite\":\"a\"}\n{\"step\":1,\"suite\":\"b\"}\n{\"step\":2}\n");
  CHECK(lines.bytes() == contents(lines.path()).size());
}

TEST_CASE("json lines: doubles come back exactly") {
  const TemporaryDirectory directory;
  JsonLines lines(directory / "metrics.jsonl");
  for (const double value : {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -123456789.123456789}) {
    lines.append({{"step", 1}, {"value", value}});
    const std::string text = contents(lines.path());
    const auto begin = text.rfind('\n', text.size() - 2);
    const auto line = nlohmann::json::parse(text.substr(begin == std::string::npos ? 0 : begin + 1));
    CHECK(line["value"].get<double>() == value);
  }
}

TEST_CASE("json lines: opening removes part of a line and continues") {
  const TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  for (const std::size_t partial : {std::size_t{1}, std::size_t{9}, std::size_t{20000}}) {
    write_contents(path, "{\"step\":1}\n" + std::string(partial, 'x'));
    JsonLines lines(path);
    CHECK(lines.bytes() == 11);
    lines.append({{"step", 2}});
    CHECK(contents(path) == "{\"step\":1}\n{\"step\":2}\n");
  }
  write_contents(path, "{\"st");
  CHECK(JsonLines(path).bytes() == 0);
}

TEST_CASE("json lines: truncation keeps the steps up to the checkpoint, once each") {
  const TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  CHECK(truncate_json_lines(path, 100).last_step == -1);  // no file yet
  CHECK_FALSE(std::filesystem::exists(path));

  const std::string kept = "{\"step\":100}\n{\"step\":200,\"suite\":\"a\"}\n{\"step\":200,\"suite\":\"b\"}\n";
  write_contents(path, kept + "{\"step\":300}\n{\"step\":400}\n{\"step\":5");
  JsonLinesTruncation result = truncate_json_lines(path, 200);
  CHECK(result.kept == 3);
  CHECK(result.dropped == 3);
  CHECK(result.foreign == 0);  // what a crash cut off is nobody's note
  CHECK(result.last_step == 200);
  CHECK(contents(path) == kept);
  const auto written = std::filesystem::last_write_time(path);
  result = truncate_json_lines(path, 200);  // nothing to do: the file is left alone
  CHECK(result.dropped == 0);
  CHECK(std::filesystem::last_write_time(path) == written);

  write_contents(path, "{\"step\":300}\n{\"step\":100}\n" + std::string(50, '\0') + "\n");
  result = truncate_json_lines(path, 200);
  CHECK(contents(path) == "{\"step\":100}\n");
  CHECK(result.dropped == 2);
  CHECK(result.foreign == 1);
  write_contents(path, "{\"step\":100}\n# too high here\n\n{\"note\":\"x\"}\n{\"step\":2");
  result = truncate_json_lines(path, 200);
  CHECK(contents(path) == "{\"step\":100}\n");
  CHECK(result.dropped == 4);
  CHECK(result.foreign == 3);
  result = truncate_json_lines(path, 50);
  CHECK(contents(path).empty());
}

TEST_CASE("json lines: steps behind the last one that has its completing line are removed") {
  const TemporaryDirectory directory;
  const auto path = directory / "eval.jsonl";
  const auto completes = [](const nlohmann::json& line) { return line.contains("end"); };
  const std::string first = "{\"step\":5}\n{\"step\":5,\"end\":1}\n", part = "{\"step\":10}\n{\"step\":10}\n";
  const std::string second = part + "{\"step\":10,\"end\":1}\n";
  const auto check = [&](const std::string& text, std::int64_t step, const std::string& left, std::int64_t last) {
    write_contents(path, text);
    const JsonLinesTruncation result = truncate_json_lines(path, step, completes);
    CHECK(contents(path) == left);
    CHECK(result.last_step == last);
    CHECK(result.kept == std::count(left.begin(), left.end(), '\n'));
    CHECK(result.kept + result.dropped == std::count(text.begin(), text.end(), '\n'));
  };
  check(first + second, 10, first + second, 10);
  check(first + part, 10, first, 5);
  check(part, 10, "", -1);
  check(first + second, 7, first, 5);  // what is behind `step` completes nothing
  check(first + "{\"step\":5}\n", 10, first + "{\"step\":5}\n", 5);
  check(part + "{\"step\":12,\"end\":1}\n", 12, part + "{\"step\":12,\"end\":1}\n", 12);
}

TEST_CASE("json lines: an unreadable line in the middle is an error, since dropping it would lose a step") {
  const TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  for (const char* bad : {"{\"step\":", "{\"loss\":1}", "[1]", "{\"step\":1.5}", ""}) {
    const std::string text = "{\"step\":1}\n" + std::string(bad) + "\n{\"step\":3}\n";
    write_contents(path, text);
    CHECK_THROWS_WITH_AS(truncate_json_lines(path, 2), doctest::Contains("metrics.jsonl: line 2"), DataError);
    CHECK(contents(path) == text);
  }
}

TEST_CASE("json lines: a full disk leaves whole lines") {
  const TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  JsonLines lines(path);
  lines.append({{"step", 1}});
  const std::string before = contents(path);
  {
    const FileSizeLimit limit(before.size() + 5);
    REQUIRE(limit.holds());
    CHECK_THROWS_WITH_AS(lines.append({{"step", 2}}), doctest::Contains("cannot append to"), EnvironmentError);
  }
  CHECK(contents(path) == before);
  lines.append({{"step", 2}});
  CHECK(contents(path) == before + "{\"step\":2}\n");
}

}  // namespace
}  // namespace graft
