// Every key of the schema, mistyped and misused in every way that can be made up; and files that are nearly, or not at
// all, configurations.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "train/config.h"
#include "train/config_file.h"
#include "train/config_schema.h"

namespace graft {
namespace {

using test::TemporaryDirectory;
using test::write_contents;
namespace fs = std::filesystem;

// The goal is 50 ms, which the printed figures of an optimised build show; the bound leaves room for sanitizers.
constexpr double kLooseMilliseconds = 2000;

struct Refusal {
  std::string message;  // empty: accepted
  int exit_code = 0;
  double milliseconds = 0;  // of this process, whatever else the machine does
};

Refusal attempt(const std::function<void()>& read) {
  Refusal refusal;
  const std::clock_t begin = std::clock();
  try {
    read();
  } catch (const ConfigError& error) {
    refusal.message = error.what();
    refusal.exit_code = static_cast<int>(error.exit_code());
  }
  refusal.milliseconds = 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  return refusal;
}

Refusal read_text(const std::string& text) {
  return attempt([&] { static_cast<void>(parse_config(text, "x.toml")); });
}

Refusal read_file(const fs::path& path) {
  return attempt([&] { static_cast<void>(load_config(path.string())); });
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// A declaration with the two owners that make it legal.
struct Place {
  const SettingKey* key = nullptr;
  std::string task = "linear_regression";
  std::string preset = "transformer";
  std::string optimizer, schedule;  // empty: the default
};

/// Each path with each owner, common keys once. Selectors themselves are among them.
std::vector<Place> places(const Schema& schema) {
  std::vector<Place> list;
  for (const Schema::Declaration& declaration : schema.all()) {
    Place place{.key = declaration.key};
    if (declaration.group != nullptr && !declaration.group->owner.empty()) {
      const std::string& table = declaration.group->table;
      const std::string& owner = declaration.group->owner;
      (table == "task"        ? place.task
       : table == "model"     ? place.preset
       : table == "optimizer" ? place.optimizer
                              : place.schedule) = owner;
    }
    list.push_back(std::move(place));
  }
  return list;
}

/// A configuration with one line more, `path = value`, that would be right with a right value. Returns the line's
/// number.
std::pair<std::string, int> with_line(const Place& place, const std::string& path, const std::string& value,
                                      bool twice = false) {
  std::string text;
  const auto give = [&](const char* selector, const std::string& owner) {
    if (!owner.empty() && place.key->path != selector) text += fmt::format("{} = \"{}\"\n", selector, owner);
  };
  give("task.name", place.task);
  // Of two ways to say the same thing only one may be given.
  if (place.key->path != "model.pattern") give("model.preset", place.preset);
  give("optimizer.name", place.optimizer);
  give("schedule.name", place.schedule);
  const auto line = static_cast<int>(std::count(text.begin(), text.end(), '\n')) + 1;
  text += fmt::format("{} = {}\n", path, value);
  if (twice) text += fmt::format("{} = {}\n", path, value);
  return {text, line + (twice ? 1 : 0)};
}

std::vector<std::string> typos(const std::string& path) {
  std::vector<std::string> list;
  const std::size_t name = path.rfind('.') + 1;
  // At the beginning, in the middle and at the end of the name, and in the table.
  for (const std::size_t at : {name, (name + path.size()) / 2, path.size() - 1, name / 2}) {
    if (path[at] == '.') continue;
    const char other = path[at] == 'x' ? 'k' : 'x';
    list.push_back(path.substr(0, at) + other + path.substr(at));
    list.push_back(path.substr(0, at) + path[at] + path.substr(at));  // a letter twice
    list.push_back(path.substr(0, at) + path.substr(at + 1));
    list.push_back(path.substr(0, at) + other + path.substr(at + 1));
    if (at + 1 < path.size() && path[at + 1] != '.' && path[at] != path[at + 1]) {
      std::string swapped = path;
      std::swap(swapped[at], swapped[at + 1]);
      list.push_back(std::move(swapped));
    }
  }
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  std::erase_if(list, [](const std::string& typed) {  // what is left of a part of one letter is no key
    return typed.empty() || typed.front() == '.' || typed.back() == '.' || contains(typed, "..");
  });
  return list;
}

TEST_CASE("config faults: one wrong letter in any key, and the first suggestion") {
  const Schema schema;
  std::set<std::string> known;
  for (const Schema::Declaration& declaration : schema.all()) known.insert(declaration.key->path);
  std::size_t all = 0;
  std::size_t right = 0;
  std::string wrong;
  double slowest = 0;
  std::set<std::string> seen;
  for (const Place& place : places(schema)) {
    const std::string& path = place.key->path;
    if (!seen.insert(path).second) continue;
    const bool boolean = place.key->kind == SettingKind::Boolean;
    for (const std::string& typed : typos(path)) {
      if (known.contains(typed)) continue;
      const auto [text, line] = with_line(place, typed, boolean ? "true" : "1");
      const Refusal refusal = read_text(text);
      CAPTURE(text);
      CAPTURE(refusal.message);
      CHECK(contains(refusal.message, fmt::format("x.toml:{}:", line)));
      CHECK(refusal.exit_code == 2);
      slowest = std::max(slowest, refusal.milliseconds);
      ++all;
      const std::size_t first = refusal.message.find("did you mean `");
      // A wrong letter in the table's name is answered with the table.
      const std::size_t dot = path.rfind('.');
      const bool found = first != std::string::npos &&
                         (refusal.message.compare(first + 14, path.size() + 1, path + "`") == 0 ||
                          (typed.substr(typed.rfind('.') + 1) == path.substr(dot + 1) &&
                           refusal.message.compare(first + 14, dot + 1, path.substr(0, dot) + "`") == 0));
      right += found ? 1 : 0;
      if (!found) wrong += fmt::format(" {} ({})", typed, path);
    }
  }
  MESSAGE(fmt::format(
      "{} of {} typing mistakes in {} keys: the first suggestion is right ({:.2f} %); slowest {:.2f} ms; "
      "not right:{}",
      right, all, seen.size(), 100.0 * static_cast<double>(right) / static_cast<double>(all), slowest, wrong));
  CHECK(static_cast<double>(right) >= 0.95 * static_cast<double>(all));
  CHECK(slowest < kLooseMilliseconds);
}

/// Values that a key of this kind must refuse, whatever its range.
std::vector<std::string> wrong_types(SettingKind kind) {
  std::vector<std::string> list = {"{a = 1}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z",
                                   "[[1]]",   "[true]",     "[{a = 1}]"};
  const auto also = [&](std::initializer_list<const char*> more) { list.insert(list.end(), more.begin(), more.end()); };
  if (kind != SettingKind::Boolean) also({"true", "false"});
  if (kind != SettingKind::Integer && kind != SettingKind::Number) also({"1", "-1"});
  if (kind != SettingKind::Number) also({"1.0", "1e3"});
  if (kind != SettingKind::String) also({"\"x\"", "\"1\"", "\"true\"", "'''x'''"});
  if (kind != SettingKind::IntegerArray && kind != SettingKind::NumberArray) also({"[1]"});
  if (kind != SettingKind::NumberArray) also({"[1.5]", "[1, 1.5]"});
  if (kind != SettingKind::StringArray) also({"[\"x\"]"});
  if (kind != SettingKind::IntegerArray && kind != SettingKind::NumberArray && kind != SettingKind::StringArray)
    also({"[]"});
  return list;
}

/// Values just outside of a key's range, as TOML.
std::vector<std::string> out_of_range(const SettingKey& key) {
  const bool list = key.kind == SettingKind::IntegerArray || key.kind == SettingKind::NumberArray;
  const bool whole = key.kind == SettingKind::Integer || key.kind == SettingKind::IntegerArray;
  const bool number = whole || key.kind == SettingKind::Number || key.kind == SettingKind::NumberArray;
  if (!number) return {};
  std::vector<std::string> values;
  const auto beyond = [&](const SettingBound& bound, double direction) {
    if (whole) {
      if (std::abs(bound.value) < 9e15) {
        const auto edge = static_cast<std::int64_t>(bound.value);
        values.emplace_back(fmt::format("{}", bound.open ? edge : edge + static_cast<std::int64_t>(direction)));
      }
      values.emplace_back(direction > 0 ? "9223372036854775807" : "-9223372036854775808");
    } else {
      const double step = bound.open ? bound.value : std::nextafter(bound.value, direction * 1e308);
      values.push_back(toml_text(SettingValue(step)));
      values.emplace_back(direction > 0 ? "1.7e308" : "-1.7e308");
    }
  };
  if (key.minimum.has_value()) beyond(*key.minimum, -1);
  if (key.maximum.has_value()) beyond(*key.maximum, 1);
  if (list) {
    for (std::string& value : values) value = fmt::format("[{}]", value);
  }
  return values;
}

/// Values that are none for this key: not finite, empty, no choice, no TOML.
std::vector<std::string> no_values(const SettingKey& key) {
  std::vector<std::string> list = {"",    "nan", "inf", "-inf", "+nan", "1e400",  "9223372036854775808", "\"open", "[1",
                                   "yes", "1 2", "01",  "1__0", "0x",   "\"\\q\""};
  if (key.kind == SettingKind::NumberArray) list.insert(list.end(), {"[nan]", "[0.5, inf]"});
  if (key.kind == SettingKind::String) list.emplace_back("\"\"");
  if (key.kind == SettingKind::StringArray) list.emplace_back("[\"\"]");
  if (!key.choices.empty()) {
    list.emplace_back(key.kind == SettingKind::StringArray ? "[\"no such choice\"]" : "\"no such choice\"");
  }
  return list;
}

TEST_CASE("config faults: every key refuses what is no value of it, at the value's place") {
  const Schema schema;
  std::map<std::string, int> counts;
  double slowest = 0;
  const auto refuse = [&](const char* kind, const Place& place, const std::string& value, bool twice = false) {
    const auto [text, line] = with_line(place, place.key->path, value, twice);
    const Refusal refusal = read_text(text);
    if (refusal.exit_code != 2 || !contains(refusal.message, fmt::format("x.toml:{}:", line))) {
      CAPTURE(kind);
      CAPTURE(text);
      CAPTURE(refusal.message);
      CHECK(refusal.exit_code == 2);
      CHECK(contains(refusal.message, fmt::format("x.toml:{}:", line)));
    }
    CHECK(contains(refusal.message, place.key->path));
    CHECK(contains(refusal.message, "^"));
    ++counts[kind];
    slowest = std::max(slowest, refusal.milliseconds);
  };
  for (const Place& place : places(schema)) {
    for (const std::string& value : wrong_types(place.key->kind)) refuse("wrong type", place, value);
    for (const std::string& value : out_of_range(*place.key)) refuse("out of range", place, value);
    for (const std::string& value : no_values(*place.key)) refuse("no value", place, value);
    refuse("twice", place, "1", true);
  }
  std::string summary;
  for (const auto& [kind, count] : counts) summary += fmt::format("{} {}, ", count, kind);
  MESSAGE(fmt::format("{} declarations: {}all refused; slowest {:.2f} ms", places(schema).size(), summary, slowest));
  CHECK(slowest < kLooseMilliseconds);
}

std::string repeat(std::string_view part, std::size_t count) {
  std::string text;
  text.reserve(part.size() * count);
  for (std::size_t i = 0; i < count; ++i) text += part;
  return text;
}

struct BadFile {
  std::string name;
  std::string text;
  bool place = true;  // the message has a line
};

/// Files whose content is wrong.
std::vector<BadFile> bad_files() {
  const std::string minimal = "[task]\nname = \"linear_regression\"\n[model]\npreset = \"transformer\"\n";
  std::string crlf;
  for (const char c : minimal + "lr = 1\n") crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  std::string utf16 = "\xff\xfe";
  for (const char c : minimal) utf16 += std::string(1, c) + '\0';
  std::string utf16_big = "\xfe\xff";
  for (const char c : minimal) utf16_big += std::string(1, '\0') + c;
  std::vector<BadFile> files = {
      {"empty", "", false},
      {"spaces", "  \n\n", false},
      {"comment", "# nothing\n", false},
      {"no_task", "[model]\npreset = \"transformer\"\n", false},
      {"no_model", "[task]\nname = \"linear_regression\"\n", false},
      {"too_large", minimal + std::string(40 << 10, '#'), false},
      {"megabytes", repeat(minimal, 100000), false},
      {"bom_then_mistake", "\xef\xbb\xbf[optimzer]\n" + minimal},
      {"bom_twice", "\xef\xbb\xbf\xef\xbb\xbf" + minimal},
      {"crlf", crlf},
      {"lone_cr", "[task]\rname = \"linear_regression\"\r"},
      {"utf16", utf16},
      {"utf16_big", utf16_big},
      {"latin1", minimal + "# \xe4\n"},
      {"overlong", minimal + "# \xc0\xaf\n"},
      {"surrogate", minimal + "# \xed\xa0\x80\n"},
      {"beyond_unicode", minimal + "# \xf4\x90\x80\x80\n"},
      {"cut_character", minimal + "# \xe2\x82"},
      {"zero_byte", minimal + std::string("x = \0\n", 6)},
      {"zero_byte_in_comment", minimal + std::string("# \0\n", 4)},
      {"zero_bytes", std::string(4096, '\0')},
      {"control_in_comment", minimal + "# \x01\n"},
      {"control_in_text", minimal + "x = \"\x02\"\n"},
      {"escape_sequence", minimal + "\x1b[2J = 1\n"},
      {"delete", minimal + "x = \"\x7f\"\n"},
      {"form_feed", minimal + "\f\n"},
      {"accent_in_key", minimal + "caf\xc3\xa9 = 1\n"},
      {"accent_in_value", minimal + "x = caf\xc3\xa9\n"},
      {"typographic_quotes", "[task]\nname = \xe2\x80\x9clinear_regression\xe2\x80\x9d\n"},
      {"no_break_space", minimal + "\xc2\xa0width = 64\n"},
      {"quote_in_a_word", minimal + "x = -1_r'''\"`.f.f\xd2\x99.a\n'''\n"},
      {"deep_arrays", "a = " + repeat("[", 32000)},
      {"deep_closed_arrays", "a = " + repeat("[", 9) + "1" + repeat("]", 9) + "\n"},
      {"deep_arrays_in_lines", "a = " + repeat("[\n", 16000)},
      {"deep_inline_tables", "a = " + repeat("{a=", 10000)},
      {"deep_mixed", "a = " + repeat("[{a=", 8000)},
      {"deep_dots", repeat("a.", 16000) + "a = 1\n"},
      {"deep_dots_with_spaces", repeat("a . ", 8000) + "a = 1\n"},
      {"deep_quoted_dots", repeat("\"a\".", 8000) + "a = 1\n"},
      {"deep_header", "[" + repeat("a.", 16000) + "a]\n"},
      {"deep_array_header", "[[" + repeat("a.", 16000) + "a]]\n"},
      {"deep_header_brackets", repeat("[", 32000) + "\n"},
      {"deep_inline_dots", "a = {" + repeat("a.", 16000) + "a = 1}\n"},
      {"deep_behind_four_quotes", "a = [\"\"\"x\"\"\"\", " + repeat("[", 30000)},
      {"deep_behind_five_quotes", "a = [\"\"\"x\"\"\"\"\", " + repeat("[", 30000)},
      {"deep_behind_literal_quotes", "a = {b = '''x'''', " + repeat("a.", 15000) + "a = 1}\n"},
      {"deep_behind_open_text", "a = \"x\n" + repeat("b.", 15000) + "c = 1\n"},
      {"deep_behind_backslash", "a = \"\\\n" + repeat("[", 30000) + "\n\""},
      {"deep_behind_comment", "# \"\"\"\na = " + repeat("[", 30000)},
      {"deep_growing", repeat("[a]\n[a.a]\n[a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a]\n", 500)},
      {"huge_key", minimal + repeat("x", 30000) + " = 1\n"},
      {"huge_quoted_key", minimal + "\"" + repeat("x ", 15000) + "\" = 1\n"},
      {"huge_header", "[" + repeat("x", 30000) + "]\n"},
      {"huge_text", minimal + "x = \"" + repeat("y", 30000) + "\"\n"},
      {"huge_preset",
       "[task]\nname = \"linear_regression\"\n[model]\npreset = \"" + repeat("transformer", 2500) + "\"\n"},
      {"huge_number", minimal + "x = " + repeat("9", 30000) + "\n"},
      {"huge_fraction", minimal + "x = 0." + repeat("3", 30000) + "\n"},
      {"huge_array", minimal + "x = [" + repeat("1,", 15000) + "]\n"},
      {"huge_word", minimal + "x = " + repeat("y", 30000) + "\n"},
      {"open_text", minimal + "x = \"abc\n"},
      {"open_literal", minimal + "x = 'abc\n"},
      {"open_long_text", minimal + "x = \"\"\"abc\n"},
      {"open_long_literal", minimal + "x = '''abc\n"},
      {"open_array", minimal + "x = [1, 2\n"},
      {"open_inline_table", minimal + "x = {a = 1\n"},
      {"open_header", "[task\nname = \"linear_regression\"\n"},
      {"open_array_header", "[[task]\nname = \"linear_regression\"\n"},
      {"quotes", repeat("\"", 31999)},
      {"apostrophes", repeat("'", 31999)},
      {"backslashes", repeat("\\", 31999)},
      {"equals", repeat("=", 31999)},
      {"commas", repeat(",", 31999)},
      {"dots", repeat(".", 31999)},
      {"bad_escape", minimal + "x = \"\\q\"\n"},
      {"bad_unicode_escape", minimal + "x = \"\\u12\"\n"},
      {"surrogate_escape", minimal + "x = \"\\ud800\"\n"},
      {"escape_beyond_unicode", minimal + "x = \"\\U00110000\"\n"},
      {"escaped_control", minimal + "x = \"\\u001b[2J\"\n"},
      {"bad_date", minimal + "x = 2024-02-30\n"},
      {"bad_month", minimal + "x = 2024-13-01\n"},
      {"bad_time", minimal + "x = 25:00:00\n"},
      {"bad_offset", minimal + "x = 1979-05-27T07:32:00+99:00\n"},
      {"date", minimal + "x = 1979-05-27\n"},
      {"leading_zero", minimal + "width = 064\n"},
      {"two_signs", minimal + "width = +-64\n"},
      {"two_underscores", minimal + "width = 6__4\n"},
      {"point_first", minimal + "[optimizer]\nlr = .5\n"},
      {"point_last", minimal + "[optimizer]\nlr = 5.\n"},
      {"comma_for_point", minimal + "[optimizer]\nlr = 0,5\n"},
      {"hexadecimal_float", minimal + "[optimizer]\nlr = 0x1p3\n"},
      {"empty_hexadecimal", minimal + "width = 0x\n"},
      {"too_large_integer", minimal + "width = 9223372036854775808\n"},
      {"too_large_float", minimal + "[optimizer]\nlr = 1e400\n"},
      {"nan", minimal + "[optimizer]\nlr = nan\n"},
      {"inf", minimal + "[optimizer]\nlr = -inf\n"},
      {"capital_true", minimal + "[train]\ncapture = True\n"},
      {"no_value", minimal + "width =\n"},
      {"no_key", minimal + "= 64\n"},
      {"no_equals", minimal + "width 64\n"},
      {"colon", minimal + "width: 64\n"},
      {"two_equals", minimal + "width == 64\n"},
      {"two_values", minimal + "width = 64 heads = 8\n"},
      {"semicolon", minimal + "width = 64;\n"},
      {"key_twice", minimal + "width = 64\nwidth = 64\n"},
      {"table_twice", minimal + "[model]\nwidth = 64\n"},
      {"table_and_key", "task = 1\n" + minimal},
      {"table_as_array", "[[task]]\nname = \"linear_regression\"\n"},
      {"key_as_table", minimal + "[model.width]\nx = 1\n"},
      {"dotted_again", minimal + "[model.preset.x]\ny = 1\n"},
      {"inline_extended", "task = {name = \"linear_regression\"}\n[task.curriculum]\nenabled = true\n"},
      {"inline_line_break", "task = {name = \"linear_regression\",\ndim = 3}\n"},
      {"empty_header", minimal + "[]\n"},
      {"empty_part", minimal + "[a..b]\n"},
      {"spaced_array_header", minimal + "[ [a] ]\n"},
      {"empty_quoted_key", minimal + "\"\" = 1\n"},
      {"long_quoted_key", minimal + "\"\"\"a\"\"\" = 1\n"},
      {"text_behind_header", minimal + "[train] steps = 3\n"},
      {"json", "{\"task\": {\"name\": \"linear_regression\"}}\n"},
      {"yaml", "task:\n  name: linear_regression\n"},
      {"ini", "; settings\n[task]\nname = linear_regression\n"},
      {"binary", std::string("\x7f\x45LF\2\1\1\0", 8)},
      {"shell", "#!/bin/sh\nexit 0\n"},
      {"unknown_keys", minimal + repeat("unknown_key_a = 1\n", 1) + "b = 2\nc = 3\n"},
      {"many_tables", repeat("[optimizr]\n", 2900)},
      {"many_arrays_of_tables", repeat("[[a]]\n", 5000)},
      {"many_syntax_mistakes", repeat("k = yes\n", 4000)},
  };
  std::string many_keys = minimal;
  for (int i = 0; many_keys.size() < (32 << 10) - 20; ++i) many_keys += fmt::format("widht{} = 1\n", i);
  files.push_back({"many_unknown_keys", many_keys});
  return files;
}

/// Runs the program on a file; its exit code, or minus the signal that ended it.
int exit_code_of_check(const fs::path& file) {
  fs::path program = fs::read_symlink("/proc/self/exe").parent_path() / "graft";
  REQUIRE(fs::exists(program));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const int stream : {0, 1, 2}) posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_RDWR, 0);
  std::vector<std::string> words = {program.string(), "config", "check", file.string()};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = -1;
  const int failed = posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  REQUIRE(failed == 0);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST_CASE("config faults: bad files are refused with the place and exit code 2") {
  const TemporaryDirectory directory;
  std::vector<std::pair<fs::path, bool>> paths;  // and whether the message has a line
  for (const BadFile& file : bad_files()) {
    paths.emplace_back(directory / (file.name + ".toml"), file.place);
    write_contents(paths.back().first, file.text);
  }
  REQUIRE(::mkfifo((directory / "pipe.toml").c_str(), 0600) == 0);
  fs::create_directory(directory / "directory.toml");
  fs::create_symlink("loop.toml", directory / "loop.toml");
  fs::create_symlink("nowhere.toml", directory / "dangling.toml");
  write_contents(directory / "secret.toml", "[task]\n");
  fs::permissions(directory / "secret.toml", fs::perms::none);  // root reads it, and finds no model in it
  for (const char* name :
       {"pipe.toml", "directory.toml", "loop.toml", "dangling.toml", "missing.toml", "secret.toml"}) {
    paths.emplace_back(directory / name, false);
  }
  paths.emplace_back("/dev/null", false);
  paths.emplace_back("/dev/zero", false);
  paths.emplace_back(directory / "empty.toml" / "x.toml", false);
  paths.emplace_back(directory / (std::string(5000, 'n') + ".toml"), false);
  CHECK(paths.size() >= 100);

  double slowest = 0;
  std::string slowest_name;
  for (const auto& [path, has_line] : paths) {
    const Refusal refusal = read_file(path);
    CAPTURE(path.string().substr(0, 200));
    CAPTURE(refusal.message);
    CHECK(refusal.exit_code == 2);
    CHECK(contains(refusal.message, path.filename().string().substr(0, 20)));
    CHECK(refusal.message.size() < 32768);
    CHECK(is_utf8(refusal.message));
    CHECK(std::none_of(refusal.message.begin(), refusal.message.end(),
                       [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7f; }));
    if (has_line) {
      const std::size_t line = refusal.message.find(".toml:");
      REQUIRE(line != std::string::npos);
      CHECK(std::isdigit(static_cast<unsigned char>(refusal.message[line + 6])) != 0);
      CHECK(contains(refusal.message, "^\n"));
    }
    CHECK(refusal.milliseconds < kLooseMilliseconds);
    if (refusal.milliseconds >= slowest) {
      slowest = refusal.milliseconds;
      slowest_name = path.filename().string();
    }
    CHECK(exit_code_of_check(path) == 2);
  }
  MESSAGE(fmt::format("{} files refused; slowest {:.2f} ms ({})", paths.size(), slowest, slowest_name));
}

}  // namespace
}  // namespace graft
