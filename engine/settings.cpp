#include "engine/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <tuple>
#include <utility>

#include "engine/error.h"

namespace graft {
namespace {

std::vector<SettingGroup>& registry() {
  static std::vector<SettingGroup> groups;  // local, so that it exists before any registration runs
  return groups;
}

const char* kind_of(const SettingValue& value) {
  static constexpr std::array<const char*, 8> kNames = {
      "nothing",          "a boolean", "an integer", "a number", "text", "an array of integers", "an array of numbers",
      "an array of texts"};
  return kNames.at(value.index());
}

std::string bound_text(double value) {
  // Large round bounds are easier to read as powers.
  constexpr double kLarge = 1e6;
  if (value >= kLarge) {
    for (int exponent = 6; exponent <= 30; ++exponent) {
      if (value == std::pow(10.0, exponent)) return fmt::format("10^{}", exponent);
    }
    int exponent = 0;
    if (std::frexp(value, &exponent) == 0.5) return fmt::format("2^{}", exponent - 1);
  }
  constexpr double kExactInteger = 1e15;
  const bool whole = std::abs(value) < kExactInteger && value == std::floor(value);
  return whole ? fmt::format("{}", static_cast<std::int64_t>(value)) : fmt::format("{}", value);
}

std::string quoted_list(const std::vector<std::string>& values) {
  std::string list;
  for (const std::string& value : values) list += (list.empty() ? "" : ", ") + quoted_text(value);
  return list;
}

template <class T>
std::string array_text(const std::vector<T>& values) {
  std::string list = "[";
  for (const T& value : values) {
    if (list.size() > 1) list += ", ";
    list += toml_text(value);
  }
  return list + "]";
}

}  // namespace

const char* phrase_of(SettingKind kind) {
  switch (kind) {
    case SettingKind::Boolean:
      return "true or false";
    case SettingKind::Integer:
      return "an integer";
    case SettingKind::Number:
      return "a number";
    case SettingKind::String:
      return "text";
    case SettingKind::IntegerArray:
      return "an array of integers";
    case SettingKind::NumberArray:
      return "an array of numbers";
    case SettingKind::StringArray:
      return "an array of texts";
  }
  return "?";
}

namespace {

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (value == 0) return "0.0";  // the sign of zero means nothing in a configuration
  // The standard defines the digits of std::to_chars, so this text is the same wherever it is written.
  const double size = std::abs(value);
  const auto format = size >= 1e-4 && size < 1e16 ? std::chars_format::fixed : std::chars_format::scientific;
  std::array<char, 64> buffer{};
  const auto [end, status] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format);
  std::string digits(buffer.data(), status == std::errc() ? end : buffer.data());
  if (digits.find_first_of(".e") == std::string::npos) digits += ".0";  // stays a float when read back
  return digits;
}

}  // namespace

std::string quoted_text(std::string_view value) {
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04X}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string toml_text(const SettingValue& value) {
  struct Writer {
    std::string operator()(std::monostate) const { return ""; }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(std::int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return number_text(v); }
    std::string operator()(const std::string& v) const { return quoted_text(v); }
    std::string operator()(const std::vector<std::int64_t>& v) const { return array_text(v); }
    std::string operator()(const std::vector<double>& v) const { return array_text(v); }
    std::string operator()(const std::vector<std::string>& v) const { return array_text(v); }
  };
  return std::visit(Writer{}, value);
}

SettingKey::SettingKey(std::string key_path, std::string meaning, SettingKind key_kind)
    : path(std::move(key_path)), doc(std::move(meaning)), kind(key_kind) {}

SettingKey SettingKey::boolean(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::Boolean};
}
SettingKey SettingKey::integer(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::Integer};
}
SettingKey SettingKey::number(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::Number};
}
SettingKey SettingKey::text(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::String};
}
SettingKey SettingKey::integers(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::IntegerArray};
}
SettingKey SettingKey::numbers(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::NumberArray};
}
SettingKey SettingKey::texts(std::string path, std::string doc) {
  return {std::move(path), std::move(doc), SettingKind::StringArray};
}

namespace {

SettingKey with_fallback(SettingKey key, SettingValue value) {
  if (key.kind == SettingKind::Number && std::holds_alternative<std::int64_t>(value)) {
    value = static_cast<double>(std::get<std::int64_t>(value));
  }
  // SettingValue lists its alternatives in the order of SettingKind, after std::monostate.
  if (value.index() != static_cast<std::size_t>(key.kind) + 1) {
    throw ArgumentError(
        fmt::format("setting {}: the default is {}, expected {}", key.path, kind_of(value), phrase_of(key.kind)));
  }
  key.fallback = std::move(value);
  key.must_be_given = false;
  key.fallback_path.clear();
  key.decider.clear();
  key.compute = nullptr;
  return key;
}

}  // namespace

SettingKey SettingKey::with_default(bool value) && { return with_fallback(std::move(*this), value); }
SettingKey SettingKey::with_default(int value) && {
  return with_fallback(std::move(*this), static_cast<std::int64_t>(value));
}
SettingKey SettingKey::with_default(std::int64_t value) && { return with_fallback(std::move(*this), value); }
SettingKey SettingKey::with_default(double value) && { return with_fallback(std::move(*this), value); }
SettingKey SettingKey::with_default(const char* value) && {
  return with_fallback(std::move(*this), std::string(value));
}
SettingKey SettingKey::with_defaults(std::initializer_list<int> values) && {
  return with_fallback(std::move(*this), std::vector<std::int64_t>(values.begin(), values.end()));
}
SettingKey SettingKey::with_defaults(std::initializer_list<double> values) && {
  return with_fallback(std::move(*this), std::vector<double>(values));
}
SettingKey SettingKey::with_defaults(std::initializer_list<const char*> values) && {
  return with_fallback(std::move(*this), std::vector<std::string>(values.begin(), values.end()));
}
SettingKey SettingKey::default_from(std::string other_path) && {
  fallback_path = std::move(other_path);
  return std::move(*this);
}
SettingKey SettingKey::worked_out(std::string how, std::function<SettingValue(const Settings&)> compute_default) && {
  decider = std::move(how);
  compute = std::move(compute_default);
  return std::move(*this);
}
SettingKey SettingKey::only_with(std::string other_path, std::string value) && {
  condition_path = std::move(other_path);
  condition_value = std::move(value);
  return std::move(*this);
}
SettingKey SettingKey::decided_by(std::string who) && {
  decider = std::move(who);
  return std::move(*this);
}
SettingKey SettingKey::required() && {
  must_be_given = true;
  return std::move(*this);
}
SettingKey SettingKey::between(double low, double high) && {
  minimum = SettingBound{low, false};
  maximum = SettingBound{high, false};
  return std::move(*this);
}
SettingKey SettingKey::at_least(double low) && {
  minimum = SettingBound{low, false};
  return std::move(*this);
}
SettingKey SettingKey::at_most(double high) && {
  maximum = SettingBound{high, false};
  return std::move(*this);
}
SettingKey SettingKey::above(double low) && {
  minimum = SettingBound{low, true};
  return std::move(*this);
}
SettingKey SettingKey::below(double high) && {
  maximum = SettingBound{high, true};
  return std::move(*this);
}
SettingKey SettingKey::one_of(std::vector<std::string> values) && {
  choices = std::move(values);
  return std::move(*this);
}
SettingKey SettingKey::in(std::string measure) && {
  unit = std::move(measure);
  return std::move(*this);
}
SettingKey SettingKey::elsewhere_called(std::vector<std::string> names) && {
  aliases = std::move(names);
  return std::move(*this);
}

std::string SettingKey::table() const {
  const std::size_t dot = path.rfind('.');
  return dot == std::string::npos ? std::string() : path.substr(0, dot);
}

std::string SettingKey::name() const {
  const std::size_t dot = path.rfind('.');
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

std::string SettingKey::expected() const {
  if (!choices.empty()) {
    return fmt::format("{} {}", kind == SettingKind::StringArray ? "an array of" : "one of", quoted_list(choices));
  }
  std::string text = phrase_of(kind);
  if (minimum && maximum && minimum->value == maximum->value) {
    text += fmt::format(": {}", bound_text(minimum->value));
  } else if (minimum && maximum) {
    text += fmt::format(" {}{}, {}{}", minimum->open ? "in (" : "in [", bound_text(minimum->value),
                        bound_text(maximum->value), maximum->open ? ")" : "]");
  } else if (minimum) {
    text += fmt::format(" {} {}", minimum->open ? ">" : ">=", bound_text(minimum->value));
  } else if (maximum) {
    text += fmt::format(" {} {}", maximum->open ? "<" : "<=", bound_text(maximum->value));
  }
  return text;
}

std::string SettingKey::default_text() const {
  if (must_be_given) return "required";
  if (!fallback_path.empty()) return fmt::format("default: that of {}", fallback_path);
  if (compute) return fmt::format("default: {}", decider);
  if (!decider.empty()) return fmt::format("default: decided by {}", decider);
  if (std::holds_alternative<std::monostate>(fallback)) return "no default";
  return fmt::format("default: {}", toml_text(fallback));
}

std::optional<std::string> SettingKey::refuse(const SettingValue& value) const {
  if (value.index() != static_cast<std::size_t>(kind) + 1) {
    return fmt::format("got {}, expected {}", kind_of(value), expected());
  }
  const auto refuse_number = [&](double number, const std::string& written) -> std::optional<std::string> {
    bool fits = std::isfinite(number);
    if (minimum) fits = fits && (minimum->open ? number > minimum->value : number >= minimum->value);
    if (maximum) fits = fits && (maximum->open ? number < maximum->value : number <= maximum->value);
    if (fits) return std::nullopt;
    return fmt::format("got {}, expected {}{}", written, std::isfinite(number) ? "" : "a finite value: ", expected());
  };
  const auto refuse_text = [&](const std::string& text) -> std::optional<std::string> {
    if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) {
      return fmt::format("got {}, expected {}", quoted_text(text), expected());
    }
    if (text.empty()) return fmt::format("got an empty text, expected {}", choices.empty() ? "some" : expected());
    return std::nullopt;
  };
  const auto refuse_one = [&](const auto& element) -> std::optional<std::string> {
    using T = std::decay_t<decltype(element)>;
    if constexpr (std::is_same_v<T, std::string>) {
      return refuse_text(element);
    } else if constexpr (std::is_same_v<T, std::int64_t>) {
      return refuse_number(static_cast<double>(element), fmt::format("{}", element));
    } else if constexpr (std::is_same_v<T, double>) {
      return refuse_number(element, number_text(element));
    } else {
      return std::nullopt;
    }
  };
  const auto refuse_any = [&](const auto& held) -> std::optional<std::string> {
    using T = std::decay_t<decltype(held)>;
    if constexpr (std::is_same_v<T, std::monostate> || std::is_same_v<T, bool>) {
      return std::nullopt;
    } else if constexpr (std::is_same_v<T, std::string> || std::is_arithmetic_v<T>) {
      return refuse_one(held);
    } else {
      for (const auto& element : held) {
        if (auto why = refuse_one(element)) return why;
      }
      return std::nullopt;
    }
  };
  return std::visit(refuse_any, value);
}

std::string SettingOrigin::str() const {
  switch (source) {
    case Source::Default:
      return "default";
    case Source::Preset:
      return "preset";
    case Source::File:
      return fmt::format("{}:{}:{}", file, line, column);
    case Source::Override:
      return fmt::format("-o {}", argument);
  }
  return "?";
}

template <class T>
const T& Settings::get(std::string_view path, const char* asked) const {
  const SettingValue& held = value(path);
  if (const T* found = std::get_if<T>(&held)) return *found;
  throw ArgumentError(fmt::format("settings: {} is {}, asked for as {}", path, kind_of(held), asked));
}

bool Settings::boolean(std::string_view path) const { return get<bool>(path, "a boolean"); }
std::int64_t Settings::integer(std::string_view path) const { return get<std::int64_t>(path, "an integer"); }
double Settings::number(std::string_view path) const {
  if (const auto* whole = std::get_if<std::int64_t>(&value(path))) return static_cast<double>(*whole);
  return get<double>(path, "a number");
}
const std::string& Settings::text(std::string_view path) const { return get<std::string>(path, "text"); }
const std::vector<std::int64_t>& Settings::integers(std::string_view path) const {
  return get<std::vector<std::int64_t>>(path, "an array of integers");
}
const std::vector<double>& Settings::numbers(std::string_view path) const {
  return get<std::vector<double>>(path, "an array of numbers");
}
const std::vector<std::string>& Settings::texts(std::string_view path) const {
  return get<std::vector<std::string>>(path, "an array of texts");
}

bool Settings::has(std::string_view path) const { return entries_.find(path) != entries_.end(); }

bool Settings::given(std::string_view path) const {
  const auto found = entries_.find(path);
  return found != entries_.end() && (found->second.origin.source == SettingOrigin::Source::File ||
                                     found->second.origin.source == SettingOrigin::Source::Override);
}

const SettingValue& Settings::value(std::string_view path) const {
  const auto found = entries_.find(path);
  if (found == entries_.end()) throw ArgumentError(fmt::format("settings: {} has no value here", path));
  return found->second.value;
}

const SettingOrigin& Settings::origin(std::string_view path) const {
  static const SettingOrigin kNone;
  const auto found = entries_.find(path);
  return found == entries_.end() ? kNone : found->second.origin;
}

void Settings::set(std::string path, SettingValue value, SettingOrigin origin) {
  entries_.insert_or_assign(std::move(path), Entry{std::move(value), std::move(origin)});
}

void Settings::erase(std::string_view path) {
  if (const auto found = entries_.find(path); found != entries_.end()) entries_.erase(found);
}

std::string_view selector_of(std::string_view table) {
  if (table == "task") return "task.name";
  if (table == "model") return "model.preset";
  if (table == "optimizer") return "optimizer.name";
  if (table == "schedule") return "schedule.name";
  return {};
}

RegisterSettings::RegisterSettings(SettingGroup group) { registry().push_back(std::move(group)); }

bool has_tag(std::string_view table, std::string_view owner, std::string_view tag) {
  return std::any_of(registry().begin(), registry().end(), [&](const SettingGroup& group) {
    return group.table == table && group.owner == owner &&
           std::find(group.tags.begin(), group.tags.end(), tag) != group.tags.end();
  });
}

std::vector<SettingGroup> registered_settings() {
  std::vector<SettingGroup> groups = registry();
  std::stable_sort(groups.begin(), groups.end(), [](const SettingGroup& a, const SettingGroup& b) {
    return std::tie(a.table, a.owner) < std::tie(b.table, b.owner);
  });
  return groups;
}

}  // namespace graft
