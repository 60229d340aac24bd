#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "train/config_file.h"

namespace graft {

/// The TOML parser met input that it takes to be impossible.
struct ParserSurprised {};
[[noreturn]] inline void surprise_parser() { throw ParserSurprised(); }

}  // namespace graft

// toml++ states some of what it expects of its input as assertions: without NDEBUG a wrong file ends the program, with
// it the behaviour is undefined. Here they always throw. No other file may include the library without this.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(condition) ((condition) ? static_cast<void>(0) : graft::surprise_parser())
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

namespace graft {
namespace {

constexpr int kDeepestBrackets = 8;
constexpr int kMostParts = 16;
constexpr std::size_t kMostSyntaxMistakes = 20;

SettingOrigin at(const std::string& label, int line, int column) {
  SettingOrigin origin;
  origin.source = SettingOrigin::Source::File;
  origin.file = label;
  origin.line = line;
  origin.column = column;
  return origin;
}

SettingOrigin at_offset(const std::string& label, std::string_view text, std::size_t offset) {
  int line = 1;
  int column = 1;
  for (std::size_t i = 0; i < offset && i < text.size(); ++i) {
    if (text[i] == '\n') {
      ++line;
      column = 1;
    } else if ((static_cast<unsigned char>(text[i]) & 0xc0U) != 0x80) {  // count characters, not bytes
      ++column;
    }
  }
  return at(label, line, column);
}

bool is_bare(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

/// The parser recurses over brackets and dotted keys, and so do the destructors of what it builds; a file of a few
/// kilobytes could exhaust the stack. Finds that before parsing, outside of strings and comments.
std::optional<ConfigMistake> refuse_structure(std::string_view text, const std::string& label) {
  int depth = 0;
  int dots = 0;
  bool in_header = false;
  bool line_is_blank = true;  // so far
  bool after_equals = false;  // on this line, or in this inline table
  std::array<char, kDeepestBrackets + 1> open{};
  // The parser takes a quote in the middle of a word for part of the word, and goes on to the word's end before it
  // complains: what stands there must not be taken for a string that can hold anything.
  const auto opens_string = [&](std::size_t i) {
    const char before = i == 0 ? '\n' : text[i - 1];
    const bool value = depth > 0 && open[static_cast<std::size_t>(depth) - 1] == '[' ? !in_header : after_equals;
    return std::string_view(" \t\r\n=[{,").find(before) != std::string_view::npos || (before == '.' && !value);
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size()) - 1;
      continue;
    }
    if ((c == '"' || c == '\'') && opens_string(i)) {
      const std::string_view triple = c == '"' ? "\"\"\"" : "'''";
      const bool multi_line = text.substr(i).starts_with(triple);
      std::size_t end = i + (multi_line ? 3 : 1);
      while (end < text.size()) {
        if (!multi_line && text[end] == '\n') break;  // ends even where a backslash stands before it
        if (multi_line ? text.substr(end).starts_with(triple) : text[end] == c) break;
        end += c == '"' && text[end] == '\\' && (multi_line || text.substr(end + 1, 1) != "\n") ? 2 : 1;
      }
      if (end >= text.size()) return std::nullopt;
      if (text[end] == '\n') {
        i = end - 1;  // unclosed; the line's end still counts
      } else {
        i = multi_line ? end + 2 : end;
        // Up to two quotes before the closing three belong to the text: """"a"""" is "a".
        for (int more = 0; multi_line && more < 2 && i + 1 < text.size() && text[i + 1] == c; ++more) ++i;
      }
      line_is_blank = false;
      continue;
    }
    if (c == '\n') {
      if (in_header) depth = 0;  // an unclosed header ends with its line; the parser will complain
      in_header = false;
      dots = 0;
      line_is_blank = true;
      if (depth == 0) after_equals = false;
      continue;
    }
    if (c == '=') {
      after_equals = true;
    } else if (c == ',') {
      if (depth > 0 && open[static_cast<std::size_t>(depth) - 1] == '{') after_equals = false;
    } else if (c == '[' || c == '{') {
      in_header = in_header || (line_is_blank && depth == 0);
      if (c == '{') after_equals = false;
      open[static_cast<std::size_t>(depth)] = c;
      if (++depth > kDeepestBrackets) {
        return ConfigMistake{at_offset(label, text, i), "",
                             fmt::format("got brackets nested deeper than {}, expected a flat file", kDeepestBrackets)};
      }
    } else if (c == ']' || c == '}') {
      depth = std::max(0, depth - 1);
      after_equals = true;
    } else if (c == '.') {
      if (++dots >= kMostParts) {
        return ConfigMistake{at_offset(label, text, i), "",
                             fmt::format("got a key of more than {} parts, expected table.key", kMostParts)};
      }
      continue;
    }
    if (static_cast<unsigned char>(c) >= 0x80) {
      // Not TOML, and beyond what some releases of the parser are defined for.
      std::size_t end = i + 1;
      while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80) ++end;
      return ConfigMistake{at_offset(label, text, i), "",
                           fmt::format("got {} outside of quotes, expected letters without accents and straight quotes",
                                       shown(text.substr(i, end - i)))};
    }
    if (c == '[' || c == '{' || c == ']' || c == '}' || c == '=' || c == ',') dots = 0;
    if (c != ' ' && c != '\t' && c != '\r') line_is_blank = false;
  }
  return std::nullopt;
}

std::string phrase_for(const SettingValue& value) {
  struct Phrase {
    std::string operator()(std::monostate) const { return "nothing"; }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(std::int64_t v) const { return fmt::format("the integer {}", v); }
    std::string operator()(double v) const { return fmt::format("the number {}", toml_text(v)); }
    std::string operator()(const std::string& v) const { return fmt::format("the text {}", quoted_text(shown(v))); }
    std::string operator()(const std::vector<std::int64_t>&) const { return "an array of integers"; }
    std::string operator()(const std::vector<double>&) const { return "an array of numbers"; }
    std::string operator()(const std::vector<std::string>&) const { return "an array of texts"; }
  };
  return std::visit(Phrase{}, value);
}

void read_node(const toml::node& node, const std::string& label, RawSetting& out);

void read_array(const toml::array& array, const std::string& label, RawSetting& out) {
  if (array.empty()) {
    out.is_empty_array = true;
    out.phrase = "an empty array";
    return;
  }
  for (const toml::node& node : array) {
    RawSetting& element = out.children.emplace_back();
    read_node(node, label, element);
    element.key_origin = element.value_origin;
  }
  const auto all_of = [&](auto&& holds) { return std::all_of(array.begin(), array.end(), holds); };
  if (all_of([](const toml::node& node) { return node.is_integer(); })) {
    std::vector<std::int64_t> values;
    for (const toml::node& node : array) values.push_back(**node.as_integer());
    out.value = std::move(values);
  } else if (all_of([](const toml::node& node) { return node.is_number(); })) {
    std::vector<double> values;
    for (const toml::node& node : array) values.push_back(*node.value<double>());
    out.value = std::move(values);
  } else if (all_of([](const toml::node& node) { return node.is_string(); })) {
    std::vector<std::string> values;
    for (const toml::node& node : array) values.push_back(**node.as_string());
    out.value = std::move(values);
  } else {
    out.phrase = all_of([](const toml::node& node) { return node.is_table(); }) ? "an array of tables"
                                                                                : "an array of mixed values";
    return;
  }
  out.phrase = phrase_for(out.value);
}

/// Depth is bounded: refuse_structure() has run.
void read_node(const toml::node& node, const std::string& label, RawSetting& out) {
  const toml::source_region& region = node.source();
  out.value_origin = at(label, static_cast<int>(region.begin.line), static_cast<int>(region.begin.column));
  if (const toml::table* table = node.as_table()) {
    out.is_table = true;
    out.phrase = "a table";
    for (const auto& [key, child] : *table) {
      RawSetting& setting = out.children.emplace_back();
      setting.name = is_bare(key.str()) ? std::string(key.str()) : quoted_text(key.str());
      setting.key_origin =
          at(label, static_cast<int>(key.source().begin.line), static_cast<int>(key.source().begin.column));
      read_node(child, label, setting);
    }
    return;
  }
  if (const auto* text = node.as_string()) {
    out.value = **text;
  } else if (const auto* whole = node.as_integer()) {
    out.value = **whole;
  } else if (const auto* number = node.as_floating_point()) {
    out.value = **number;
  } else if (const auto* truth = node.as_boolean()) {
    out.value = **truth;
  } else if (const toml::array* array = node.as_array()) {
    read_array(*array, label, out);
    return;
  } else {
    out.phrase = node.is_time() ? "a time" : "a date";
    return;
  }
  out.phrase = phrase_for(out.value);
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

/// What the parser says of a text: a table, or where and why not.
struct Parsed {
  std::optional<toml::table> table;
  std::size_t line = 1;  // from 1
  int column = 1;
  std::string why;
};

Parsed parse_quietly(std::string_view text) {
  Parsed parsed;
  try {
    parsed.table = toml::parse(text);
  } catch (const toml::parse_error& error) {
    parsed.line = std::max<std::size_t>(error.source().begin.line, 1);
    parsed.column = std::max(static_cast<int>(error.source().begin.column), 1);
    parsed.why = shown(error.description(), 400);  // it quotes the text as it stands, line breaks included
  } catch (const ParserSurprised&) {
    // It does not say where. It reads from the front: the shortest beginning that surprises it ends with the line.
    const std::vector<std::string> lines = lines_of(text);
    const auto surprises = [&](std::size_t count) {
      const std::vector<std::string> beginning(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(count));
      try {
        static_cast<void>(toml::parse(fmt::format("{}", fmt::join(beginning, "\n"))));
      } catch (const toml::parse_error&) {
      } catch (const ParserSurprised&) {
        return true;
      }
      return false;
    };
    std::size_t low = 0;  // does not surprise
    std::size_t high = lines.size();
    while (high - low > 1) {
      const std::size_t middle = low + (high - low) / 2;
      (surprises(middle) ? high : low) = middle;
    }
    parsed.line = high;
    parsed.why = "not TOML, expected key = value or [table]";
  }
  return parsed;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

bool is_keyword_like(std::string_view word) {
  return !word.empty() && (std::isalpha(static_cast<unsigned char>(word[0])) != 0 || word[0] == '_') &&
         word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") ==
             std::string_view::npos;
}

/// The path of the table that line `index` belongs to: the last header above it.
std::string table_at(const std::vector<std::string>& lines, std::size_t index) {
  for (std::size_t i = index; i-- > 0;) {
    const std::string_view line = trimmed(lines[i]);
    if (!line.starts_with("[")) continue;
    const std::size_t end = line.find(']');
    if (end == std::string_view::npos) return {};
    return std::string(trimmed(line.substr(1, end - 1)));
  }
  return {};
}

/// "table.key" for the line "key = ..."; empty if it is no such line.
std::string key_of_line(const std::vector<std::string>& lines, std::size_t index) {
  const std::string_view line = lines[index];
  const std::size_t equals = line.find('=');
  if (equals == std::string_view::npos) return {};
  const std::string_view key = trimmed(line.substr(0, equals));
  const std::string table = table_at(lines, index);
  return shown(table.empty() ? std::string(key) : fmt::format("{}.{}", table, key));
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// A mistake the parser found on a line "key = value", said with the key and, where it is clear, with the remedy.
ConfigMistake explain_line(const std::vector<std::string>& lines, std::size_t index, const Parsed& parsed,
                           const std::string& label) {
  ConfigMistake mistake{at(label, static_cast<int>(parsed.line), parsed.column), "", parsed.why};
  const std::string_view line = lines[index];
  const std::size_t equals = line.find('=');
  if (equals == std::string_view::npos) return mistake;
  const std::string_view key = trimmed(line.substr(0, equals));
  std::string_view value = line.substr(equals + 1);
  const std::size_t quote = value.find_first_of("\"'");
  if (quote == std::string_view::npos) value = value.substr(0, value.find('#'));
  value = trimmed(value);
  mistake.key = key_of_line(lines, index);

  if (mistake.message.find("redefine") != std::string::npos) {
    for (std::size_t i = index; i-- > 0;) {
      const std::string_view above = lines[i];
      const std::size_t other = above.find('=');
      if (other == std::string_view::npos || trimmed(above.substr(0, other)) != key) continue;
      if (table_at(lines, i) != table_at(lines, index)) continue;
      mistake.origin.column = static_cast<int>(line.find_first_not_of(" \t")) + 1;
      mistake.message = fmt::format("given a second time, expected once; the first is on line {}", i + 1);
      return mistake;
    }
  } else if (value.empty()) {
    mistake.message = "got nothing after \"=\", expected a value";
  } else if (is_keyword_like(value)) {
    mistake.origin.column = static_cast<int>(line.find(value, equals)) + 1;
    std::string lower(value);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    if (lower == "true" || lower == "yes" || lower == "on") {
      mistake.message = fmt::format("got {}, expected a value; did you mean `true`?", value);
    } else if (lower == "false" || lower == "no" || lower == "off") {
      mistake.message = fmt::format("got {}, expected a value; did you mean `false`?", value);
    } else {
      mistake.message = fmt::format("got {} without quotes, expected a value; text is written {}", shown(value),
                                    quoted_text(shown(value)));
    }
  }
  return mistake;
}

/// True if a line is wrong whatever stands around it, so that reading can go on without it.
bool is_wrong_alone(std::string_view line) {
  if (line.find('=') == std::string_view::npos || trimmed(line).starts_with("[")) return false;
  if (refuse_structure(line, "").has_value()) return false;  // inside a string this line was harmless
  return !parse_quietly(line).table.has_value();
}

}  // namespace

RawConfig parse_toml(std::string_view text, const std::string& label) {
  RawConfig result;
  result.root.is_table = true;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const auto refuse_all = [&](ConfigMistake mistake) {
    result.mistakes.push_back(std::move(mistake));
    result.complete = false;
    return result;
  };
  if (text.size() > kLargestConfig) {
    return refuse_all(
        {at(label, 1, 1), "", fmt::format("larger than {} KiB, expected a configuration", kLargestConfig >> 10)});
  }
  if (const std::size_t bad = first_bad_utf8(text); bad != std::string_view::npos) {
    const bool utf16 = text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff");
    return refuse_all({at_offset(label, text, bad), "",
                       fmt::format("got the byte 0x{:02x}, expected UTF-8{}", static_cast<unsigned char>(text[bad]),
                                   utf16 ? "; the file seems to be UTF-16" : "")});
  }
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) {
    return refuse_all({at_offset(label, text, zero), "", "got a zero byte, expected text"});
  }
  const std::vector<std::string> original = lines_of(text);
  std::vector<std::string> lines = original;
  for (;;) {
    // Leaving out a line can turn what was text into brackets, so every version is looked at.
    const std::string rest = fmt::format("{}", fmt::join(lines, "\n"));
    if (auto mistake = refuse_structure(rest, label)) {
      std::string& line = lines[static_cast<std::size_t>(mistake->origin.line) - 1];
      const bool one_line = contains(mistake->message, "outside of quotes") && !trimmed(line).starts_with("[");
      if (!one_line || result.mistakes.size() >= kMostSyntaxMistakes) return refuse_all(std::move(*mistake));
      mistake->key = key_of_line(original, static_cast<std::size_t>(mistake->origin.line) - 1);
      result.mistakes.push_back(std::move(*mistake));
      line.clear();
      continue;
    }
    const Parsed parsed = parse_quietly(rest);
    if (parsed.table) {
      read_node(*parsed.table, label, result.root);
      return result;
    }
    const std::size_t index = std::min(parsed.line, original.size()) - 1;
    result.mistakes.push_back(explain_line(original, index, parsed, label));
    const bool redefined = result.mistakes.back().message.starts_with("given a second time");
    if (lines[index].empty() || (!redefined && !is_wrong_alone(lines[index])) ||
        result.mistakes.size() >= kMostSyntaxMistakes) {
      result.complete = false;
      return result;
    }
    lines[index].clear();
  }
}

std::optional<RawOverride> parse_override(const std::string& argument, std::vector<ConfigMistake>& mistakes) {
  SettingOrigin origin;
  origin.source = SettingOrigin::Source::Override;
  origin.argument = shown(argument);
  const auto refuse = [&](std::string message) {
    mistakes.push_back({origin, "", std::move(message)});
    return std::nullopt;
  };
  const std::size_t equals = argument.find('=');
  if (equals == std::string::npos) return refuse("got no \"=\", expected table.key=value");
  if (argument.size() > kLargestConfig) return refuse("longer than a configuration file may be");
  if (argument.find_first_of(std::string_view("\0\n\r", 3)) != std::string::npos) {
    return refuse("got a line break, expected one line");
  }
  if (first_bad_utf8(argument) != std::string_view::npos) return refuse("got bytes that are not UTF-8");

  RawOverride result;
  result.path = std::string(trimmed(std::string_view(argument).substr(0, equals)));
  result.bare = std::string(trimmed(std::string_view(argument).substr(equals + 1)));
  if (result.path.empty()) return refuse("got no key before \"=\", expected table.key=value");
  std::string_view rest = result.path;
  for (int parts = 1;; ++parts) {
    const std::size_t dot = std::min(rest.find('.'), rest.size());
    if (!is_bare(rest.substr(0, dot)) || parts > kMostParts) {
      return refuse("expected a key of letters, digits and \"_\", its parts joined by dots");
    }
    if (dot == rest.size()) break;
    rest.remove_prefix(dot + 1);
  }

  const std::string line = "value = " + result.bare;
  // A "#" would start a comment and silently cut the value.
  const bool comment = result.bare.find('#') != std::string::npos && result.bare.find_first_of("\"'[{") != 0;
  result.readable = !comment && !refuse_structure(line, "-o").has_value();
  if (result.readable) {
    const Parsed parsed = parse_quietly(line);
    result.readable = parsed.table && parsed.table->size() == 1;
    if (result.readable) read_node(*parsed.table->get("value"), "-o", result.setting);
  }
  if (!result.readable) {
    result.setting.phrase =
        result.bare.empty() ? "nothing" : fmt::format("the text {}", quoted_text(shown(result.bare)));
  }
  const auto place = [&](auto&& self, RawSetting& setting) -> void {
    setting.key_origin = setting.value_origin = origin;
    for (RawSetting& child : setting.children) self(self, child);
  };
  place(place, result.setting);
  return result;
}

}  // namespace graft
