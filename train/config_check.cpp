#include "train/config_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "engine/error.h"
#include "train/run_name.h"
#include "train/suggest.h"

namespace graft {
namespace {

using Source = SettingOrigin::Source;
using Declaration = Schema::Declaration;

constexpr std::size_t kMostShown = 50;
constexpr std::size_t kLongestLine = 120;

/// Two keys that say the same thing in two ways.
struct Alternative {
  const char* first;
  const char* second;
};
constexpr Alternative kAlternatives[] = {{"model.preset", "model.pattern"}, {"train.steps", "train.examples"}};

std::string join(const std::string& table, const std::string& name) {
  return table.empty() ? name : table + "." + name;
}

std::string did_you_mean(const std::string& nearest) {
  return nearest.empty() ? std::string() : fmt::format("; did you mean `{}`?", nearest);
}

/// One value given by the user, under its full path.
struct Given {
  const RawSetting* setting = nullptr;
  const RawOverride* override_ = nullptr;  // null for the file's
};

class Checker {
 public:
  Checker(const Schema& schema, const RawConfig& raw, const std::vector<RawOverride>& overrides, std::string_view text,
          std::string label, std::string stem)
      : schema_(schema),
        raw_(raw),
        overrides_(overrides),
        text_(text),
        label_(std::move(label)),
        stem_(std::move(stem)),
        mistakes_(raw.mistakes) {}

  Settings run() {
    if (!raw_.complete) throw_mistakes();
    flatten(raw_.root, "", nullptr);
    for (const RawOverride& entry : overrides_) place(entry.setting, entry.path, &entry);
    drop_replaced_alternatives();
    select();
    drop_switched_off();
    for (const auto& [path, given] : given_) accept(path, given);
    require_keys();
    fill_defaults();
    check_conditions();
    if (!mistakes_.empty()) throw_mistakes();
    return std::move(settings_);
  }

 private:
  void add(SettingOrigin origin, std::string key, std::string message) {
    mistakes_.push_back({std::move(origin), std::move(key), std::move(message)});
  }

  void flatten(const RawSetting& table, const std::string& prefix, const RawOverride* source) {
    for (const RawSetting& child : table.children) place(child, join(prefix, child.name), source);
  }

  /// Files a value under its path. A misspelled table counts as the one that was meant, so that one wrong letter in
  /// a header gives one message and the keys below it are still checked.
  void place(const RawSetting& setting, const std::string& path, const RawOverride* source) {
    if (schema_.is_table(path)) {
      if (setting.is_table) {
        flatten(setting, path, source);
      } else {
        add(setting.value_origin, shown(path), fmt::format("got {}, expected a table: [{}]", setting.phrase, path));
      }
      return;
    }
    if (setting.is_table && schema_.declarations(path).empty()) {
      std::vector<std::string> tables = schema_.tables();
      std::string nearest = nearest_name(path, tables);
      if (nearest.empty()) {  // "[curriculum]" for "[task.curriculum]"
        for (const std::string& table : tables) {
          if (table.ends_with("." + path)) nearest = table;
        }
      }
      std::string message = "unknown table" + did_you_mean(nearest);
      if (nearest.empty()) {
        std::string known;
        for (const std::string& table : tables) known += fmt::format("{}[{}]", known.empty() ? "" : ", ", table);
        message += "; the tables are " + known;
      }
      add(setting.key_origin, shown(path), std::move(message));
      if (!nearest.empty()) flatten(setting, nearest, source);
      return;
    }
    given_[path] = {&setting, source};
  }

  void drop_replaced_alternatives() {
    for (const auto& [first, second] : kAlternatives) {
      const auto a = given_.find(first);
      const auto b = given_.find(second);
      if (a == given_.end() || b == given_.end()) continue;
      const bool first_is_override = a->second.override_ != nullptr;
      const bool second_is_override = b->second.override_ != nullptr;
      if (first_is_override != second_is_override) {
        given_.erase(first_is_override ? b : a);
        continue;
      }
      add(b->second.setting->key_origin, second, fmt::format("given together with {}, expected one of the two", first));
      given_.erase(b);
    }
  }

  /// The value of a selector, before any other value is looked at: it decides which keys are legal.
  std::string selected(std::string_view selector) const {
    if (const auto found = given_.find(selector); found != given_.end()) {
      const SettingValue value = value_for(SettingKind::String, found->second);
      if (const auto* text = std::get_if<std::string>(&value)) return *text;
      return {};
    }
    for (const SettingKey& key : schema_.common()) {
      if (key.path == selector && std::holds_alternative<std::string>(key.fallback)) {
        return std::get<std::string>(key.fallback);
      }
    }
    return {};
  }

  void select() {
    groups_ = schema_.chosen([&](std::string_view selector) { return selected(selector); });
    for (const Declaration& declaration : schema_.active(groups_)) active_[declaration.key->path] = declaration;
  }

  /// Whether the value of the key it depends on lets this one count.
  bool counts(const SettingKey& key) const {
    return key.condition_path.empty() || chosen_text(key.condition_path) == key.condition_value;
  }

  /// A text as it was given, or else its default.
  std::string chosen_text(const std::string& path) const {
    if (const auto found = given_.find(path); found != given_.end()) {
      const SettingValue value = value_for(SettingKind::String, found->second);
      if (const auto* text = std::get_if<std::string>(&value)) return *text;
      return {};
    }
    const auto found = active_.find(path);
    if (found == active_.end()) return {};
    const auto* text = std::get_if<std::string>(&found->second.key->fallback);
    return text != nullptr ? *text : std::string();
  }

  /// A key of the file that an override of another key leaves without effect goes: nothing could take it back
  /// otherwise.
  void drop_switched_off() {
    for (const auto& [path, declaration] : active_) {
      const SettingKey& key = *declaration.key;
      const auto found = given_.find(path);
      if (found == given_.end() || found->second.override_ != nullptr || counts(key)) continue;
      const auto condition = given_.find(key.condition_path);
      if (condition != given_.end() && condition->second.override_ != nullptr) given_.erase(found);
    }
  }

  /// The value as a setting of this kind: integers widen to numbers, an empty array fits every array, -o needs no
  /// quotes around text. std::monostate if it does not fit.
  static SettingValue value_for(SettingKind kind, const Given& given) {
    const RawSetting& setting = *given.setting;
    const SettingValue& value = setting.value;
    switch (kind) {
      case SettingKind::Number:
        if (const auto* whole = std::get_if<std::int64_t>(&value)) return static_cast<double>(*whole);
        break;
      case SettingKind::NumberArray:
        if (setting.is_empty_array) return std::vector<double>{};
        if (const auto* list = std::get_if<std::vector<std::int64_t>>(&value)) {
          return std::vector<double>(list->begin(), list->end());
        }
        break;
      case SettingKind::IntegerArray:
        if (setting.is_empty_array) return std::vector<std::int64_t>{};
        break;
      case SettingKind::StringArray:
        if (setting.is_empty_array) return std::vector<std::string>{};
        if (given.override_ != nullptr && !given.override_->readable) return split_list(given.override_->bare);
        break;
      case SettingKind::String:
        if (given.override_ != nullptr && &given.override_->setting == &setting &&
            !std::holds_alternative<std::string>(value)) {
          return given.override_->bare;
        }
        break;
      default:
        break;
    }
    if (value.index() == static_cast<std::size_t>(kind) + 1) return value;
    return {};
  }

  static SettingValue split_list(const std::string& text) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      parts.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return parts;
  }

  void accept(const std::string& path, const Given& given) {
    const RawSetting& setting = *given.setting;
    const auto found = active_.find(path);
    if (found == active_.end()) {
      refuse_key(path, setting);
      return;
    }
    const SettingKey& key = *found->second.key;
    SettingValue value = value_for(key.kind, given);
    if (std::holds_alternative<std::monostate>(value)) {
      add(setting.value_origin, path, wrong_type(key, setting));
      refused_.insert(path);
      return;
    }
    if (auto why = key.refuse(value)) {
      if (const auto* text = std::get_if<std::string>(&value); text != nullptr && !key.choices.empty()) {
        *why = choice_message(*text, key);
      } else if (const auto* list = std::get_if<std::vector<std::string>>(&value);
                 list != nullptr && !key.choices.empty()) {
        for (const std::string& element : *list) {
          if (std::find(key.choices.begin(), key.choices.end(), element) != key.choices.end()) continue;
          *why = choice_message(element, key);
          break;
        }
      }
      add(setting.value_origin, path, std::move(*why));
      refused_.insert(path);
      return;
    }
    if (!counts(key)) {
      const auto other = active_.find(key.condition_path);
      const std::string chosen = chosen_text(key.condition_path);
      refused_.insert(path);
      // A wrong value there is the mistake to mend first.
      if (other == active_.end() || other->second.key->refuse(chosen)) return;
      add(setting.key_origin, path,
          fmt::format("has no effect with {} = {}; leave it out, or use {}", key.condition_path, quoted_text(chosen),
                      quoted_text(key.condition_value)));
      return;
    }
    settings_.set(path, std::move(value), setting.value_origin);
  }

  static std::string choice_message(const std::string& text, const SettingKey& key) {
    return fmt::format("got {}, expected {}{}", quoted_text(shown(text)), key.expected(),
                       did_you_mean(nearest_name(text, key.choices)));
  }

  static std::string wrong_type(const SettingKey& key, const RawSetting& setting) {
    std::string message = fmt::format("got {}, expected {}", setting.phrase, key.expected());
    if (key.kind == SettingKind::Integer) {
      // 1e5 is a float in TOML, whatever its value; that surprises everyone once.
      constexpr double kExact = 9007199254740992.0;
      const auto* number = std::get_if<double>(&setting.value);
      if (number != nullptr && *number > -kExact && *number < kExact &&
          *number == static_cast<double>(static_cast<std::int64_t>(*number))) {
        message += fmt::format("; write {}", static_cast<std::int64_t>(*number));
      }
    } else if (const auto* text = std::get_if<std::string>(&setting.value)) {
      if ((key.kind == SettingKind::Boolean && (*text == "true" || *text == "false")) ||
          (key.kind == SettingKind::Number && !text->empty() &&
           text->find_first_not_of("0123456789+-.e_") == std::string::npos)) {
        message += fmt::format("; write {} without quotes", *text);
      }
    }
    return message;
  }

  void refuse_key(const std::string& path, const RawSetting& setting) {
    std::string owners;
    std::string selector;
    for (const Declaration& declaration : schema_.declarations(path)) {
      if (declaration.group == nullptr || declaration.group->owner.empty()) continue;
      selector = selector_of(declaration.group->table);
      owners += fmt::format("{}{}", owners.empty() ? "" : ", ", quoted_text(declaration.group->owner));
    }
    if (!owners.empty()) {
      const std::string choice = selected(selector);
      const std::vector<std::string> known = schema_.owners(selector.substr(0, selector.rfind('.')));
      if (choice.empty() && given_.find("model.pattern") != given_.end() && selector == "model.preset") {
        add(setting.key_origin, path, fmt::format("belongs to {} {}, but model.pattern is given", selector, owners));
      } else if (std::find(known.begin(), known.end(), choice) != known.end()) {
        add(setting.key_origin, path,
            fmt::format("belongs to {} {}, but {} is {}", selector, owners, selector, quoted_text(choice)));
      }
      return;  // with the selector missing or wrong, that is the mistake to mend first
    }
    // Suggestions cost most of the time here; those that are not shown are not looked for.
    std::string message = "unknown key";
    if (mistakes_.size() < kMostShown) {
      const std::string nearest = nearest_key(path, candidates());
      message += did_you_mean(nearest);
      const std::size_t dot = path.rfind('.');
      const std::string table = dot == std::string::npos ? std::string() : path.substr(0, dot);
      if (nearest.empty() && schema_.is_table(table)) {
        std::string names;
        for (const auto& [known, declaration] : active_) {
          if (declaration.key->table() == table) names += (names.empty() ? "" : ", ") + declaration.key->name();
        }
        if (!names.empty()) message += fmt::format("; [{}] has {}", table, names);
      }
    }
    add(setting.key_origin, shown(path), std::move(message));
  }

  const std::vector<KeyCandidate>& candidates() {
    if (candidates_.empty()) {
      std::vector<Declaration> active;
      for (const auto& [path, declaration] : active_) active.push_back(declaration);
      candidates_ = schema_.candidates(active);
    }
    return candidates_;
  }

  void require_keys() {
    // A key can be missing because its line, or its table's header, is among the mistakes already.
    if (!raw_.mistakes.empty()) return;
    for (const auto& [path, declaration] : active_) {
      const SettingKey& key = *declaration.key;
      if (!key.must_be_given || settings_.has(path) || refused_.contains(path)) continue;
      if (misspelled(path)) continue;
      add(nowhere(), path, fmt::format("missing, expected {}", key.expected()));
    }
    const auto present = [&](const char* path) { return settings_.has(path) || refused_.contains(path); };
    if (!present("model.preset") && !present("model.pattern") && !misspelled("model.preset")) {
      const auto found = active_.find("model.preset");
      const bool known = found != active_.end() && !found->second.key->choices.empty();
      add(nowhere(), "model.preset",
          fmt::format("missing, expected {}; or blocks by hand in model.pattern",
                      known ? found->second.key->expected() : "a preset"));
    }
  }

  /// True if an unknown key led to the suggestion of this one: then it was meant.
  bool misspelled(const std::string& path) const {
    return std::any_of(mistakes_.begin(), mistakes_.end(), [&](const ConfigMistake& mistake) {
      return mistake.message.find(fmt::format("did you mean `{}`?", path)) != std::string::npos;
    });
  }

  SettingOrigin nowhere() const {
    SettingOrigin origin;
    origin.source = Source::File;
    origin.file = label_;
    return origin;
  }

  void fill_defaults() {
    settle_length();
    for (const auto& [path, declaration] : active_) {
      const SettingKey& key = *declaration.key;
      if (settings_.has(path) || std::holds_alternative<std::monostate>(key.fallback)) continue;
      if (refused_.contains(path)) continue;  // conditions must not judge a refused value by its default
      if (!counts(key)) continue;
      settings_.set(path, key.fallback, default_origin(declaration));
    }
    // A default may come from a key whose own default comes from a third.
    for (std::size_t round = 0; round < active_.size(); ++round) {
      bool changed = false;
      for (const auto& [path, declaration] : active_) {
        const SettingKey& key = *declaration.key;
        if (key.fallback_path.empty() || settings_.has(path) || refused_.contains(path)) continue;
        if (!settings_.has(key.fallback_path) || !counts(key)) continue;
        settings_.set(path, settings_.value(key.fallback_path), default_origin(declaration));
        changed = true;
      }
      if (!changed) break;
    }
    for (const auto& [path, declaration] : active_) {
      const SettingKey& key = *declaration.key;
      if (!key.compute || settings_.has(path) || refused_.contains(path) || !counts(key)) continue;
      try {
        settings_.set(path, key.compute(settings_), default_origin(declaration));
      } catch (const ArgumentError&) {
        if (refused_.empty() && mistakes_.empty()) throw;  // else a value it needs is among the mistakes
        refused_.insert(path);
      }
    }
    if (!settings_.has("run.name") && !refused_.contains("run.name")) settings_.set("run.name", run_name_from(stem_));
  }

  static SettingOrigin default_origin(const Declaration& declaration) {
    SettingOrigin origin;
    const bool preset = declaration.group != nullptr && !declaration.group->owner.empty();
    origin.source = preset ? Source::Preset : Source::Default;
    return origin;
  }

  /// train.examples is another way to write train.steps; only the latter is kept.
  void settle_length() {
    if (!settings_.has("train.examples")) return;
    const std::int64_t batch = settings_.has("train.batch")
                                   ? settings_.integer("train.batch")
                                   : std::get<std::int64_t>(active_.at("train.batch").key->fallback);
    const std::int64_t examples = settings_.integer("train.examples");
    const SettingOrigin origin = settings_.origin("train.examples");
    if (refused_.contains("train.batch")) {
      // nothing to divide by; that mistake is listed
    } else if (examples % batch != 0) {
      const std::int64_t below = examples / batch * batch;
      add(origin, "train.examples",
          fmt::format("{} is not a multiple of train.batch = {}; nearest that are: {}{}", examples, batch,
                      below > 0 ? fmt::format("{}, ", below) : "", below + batch));
    } else {
      settings_.set("train.steps", examples / batch, origin);
    }
    settings_.erase("train.examples");
  }

  void check_run_name(SettingMistakes& found) const {
    const std::string& name = settings_.text("run.name");
    if (is_run_name(name)) return;
    found.add({"run.name"},
              name.size() > kLongestRunName
                  ? fmt::format("got {} bytes, expected at most {}: it names a directory", name.size(), kLongestRunName)
                  : fmt::format("got {}, expected {}", quoted_text(shown(name)), kRunNameRule));
  }

  void check_conditions() {
    SettingMistakes found;
    const auto attempt = [&](const auto& check) {
      if (refused_.empty()) {
        check();
        return;
      }
      try {
        check();
      } catch (const ArgumentError&) {
        // The condition needs a value that was refused above.
      }
    };
    attempt([&] { check_run_name(found); });
    attempt([&] { check_common(settings_, found); });
    for (const SettingGroup* group : groups_) {
      for (const SettingCheck& check : group->checks) attempt([&] { check(settings_, found); });
    }
    for (const SettingMistakes::Mistake& mistake : found.list()) {
      // Point at a key the user wrote; the first is the one to name.
      SettingOrigin origin = nowhere();
      for (const std::string& key : mistake.keys) {
        if (!settings_.given(key)) continue;
        origin = settings_.origin(key);
        break;
      }
      add(origin, mistake.keys.empty() ? std::string() : mistake.keys.front(), mistake.message);
    }
  }

  [[noreturn]] void throw_mistakes() {
    std::stable_sort(mistakes_.begin(), mistakes_.end(), [](const ConfigMistake& a, const ConfigMistake& b) {
      const auto order = [](const ConfigMistake& mistake) {
        const SettingOrigin& origin = mistake.origin;
        return std::tuple(origin.source == Source::Override, origin.line == 0, origin.line, origin.column);
      };
      return order(a) < order(b);
    });
    std::vector<std::string_view> lines;
    for (std::size_t begin = 0; begin <= text_.size();) {
      const std::size_t end = std::min(text_.find('\n', begin), text_.size());
      lines.push_back(text_.substr(begin, end - begin));
      begin = end + 1;
    }
    std::string out;
    for (std::size_t i = 0; i < std::min(mistakes_.size(), kMostShown); ++i) out += render(mistakes_[i], lines, label_);
    if (mistakes_.size() > kMostShown) out += fmt::format("... and {} more\n", mistakes_.size() - kMostShown);
    out += fmt::format("{}: {} mistake{}; `graft config explain KEY` says what a key takes", shown(label_, 256),
                       mistakes_.size(), mistakes_.size() == 1 ? "" : "s");
    throw ConfigError(out);
  }

  static std::string render(const ConfigMistake& mistake, const std::vector<std::string_view>& lines,
                            const std::string& label) {
    const SettingOrigin& origin = mistake.origin;
    std::string where = shown(origin.line > 0 || origin.source == Source::Override ? origin.str() : origin.file, 512);
    std::string out = fmt::format("{}: {}{}{}\n", where, mistake.key, mistake.key.empty() ? "" : ": ", mistake.message);
    if (origin.source != Source::File || origin.file != label || origin.line <= 0 ||
        origin.line > static_cast<int>(lines.size())) {
      return out;
    }
    std::string_view line = lines[static_cast<std::size_t>(origin.line) - 1];
    if (origin.line == 1 && line.starts_with("\xef\xbb\xbf")) line.remove_prefix(3);
    const auto [shown_line, caret] = excerpt(line, std::max(origin.column, 1) - 1);
    const std::string number = fmt::format("{}", origin.line);
    out += fmt::format("  {} | {}\n  {:{}} | {:{}}^\n", number, shown_line, "", number.size(), "", caret);
    return out;
  }

  /// A part of a line that fits a terminal, and the caret's place in it. Counted in characters.
  static std::pair<std::string, std::size_t> excerpt(std::string_view line, int column) {
    std::vector<std::string> characters;
    for (const char c : line) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte & 0xc0U) == 0x80 && !characters.empty()) {
        characters.back() += c;
      } else if (c == '\r') {
        continue;
      } else {
        characters.emplace_back(1, c == '\t' ? ' ' : byte < 0x20 || byte == 0x7f ? '?' : c);
      }
    }
    const std::size_t caret = std::min(static_cast<std::size_t>(column), characters.size());
    std::size_t begin = 0;
    if (caret + 20 > kLongestLine) begin = caret + 20 - kLongestLine;
    const std::size_t end = std::min(characters.size(), begin + kLongestLine);
    std::string out = begin > 0 ? "..." : "";
    const std::size_t lead = out.size();
    for (std::size_t i = begin; i < end; ++i) out += shown(characters[i]);
    if (end < characters.size()) out += "...";
    return {out, caret - begin + lead};
  }

  const Schema& schema_;
  const RawConfig& raw_;
  const std::vector<RawOverride>& overrides_;
  std::string_view text_;
  std::string label_, stem_;
  std::vector<ConfigMistake> mistakes_;
  std::map<std::string, Given, std::less<>> given_;
  std::set<std::string> refused_;
  std::vector<const SettingGroup*> groups_;
  std::map<std::string, Declaration, std::less<>> active_;
  std::vector<KeyCandidate> candidates_;
  Settings settings_;
};

}  // namespace

Settings check_config(const Schema& schema, const RawConfig& raw, const std::vector<RawOverride>& overrides,
                      std::string_view text, const std::string& label, const std::string& stem) {
  return Checker(schema, raw, overrides, text, label, stem).run();
}

}  // namespace graft
