#pragma once
// What can be configured, and what was. Keys are declared where they are used (a task's or a preset's own
// source file); the reader in train/config.h checks a file against all declarations. Knows no task and no model.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace graft {

enum class SettingKind : std::uint8_t { Boolean, Integer, Number, String, IntegerArray, NumberArray, StringArray };

/// "an integer", "an array of numbers": as messages say it.
[[nodiscard]] const char* phrase_of(SettingKind kind);

/// One alternative for each SettingKind; std::monostate stands for "no value".
using SettingValue = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<std::int64_t>,
                                  std::vector<double>, std::vector<std::string>>;

/// The value as TOML text: numbers in the shortest form that reads back to the same bits, text quoted and escaped.
[[nodiscard]] std::string toml_text(const SettingValue& value);
/// A basic TOML string: quotes, backslashes and control characters escaped.
[[nodiscard]] std::string quoted_text(std::string_view text);

class Settings;

/// One end of a range; an open end is itself not allowed.
struct SettingBound {
  double value = 0;
  bool open = false;
};

/// One key: its path, type, default, range and meaning. The one place all of them are written down: parsing,
/// validation, help, `graft config explain` and the JSON schema read it. Written as a chain:
///
///   SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(1, 1024)
///   SettingKey::number("optimizer.lr", "learning rate").with_default(1e-4).above(0)
struct SettingKey {
  [[nodiscard]] static SettingKey boolean(std::string path, std::string doc);
  [[nodiscard]] static SettingKey integer(std::string path, std::string doc);
  [[nodiscard]] static SettingKey number(std::string path, std::string doc);
  [[nodiscard]] static SettingKey text(std::string path, std::string doc);
  [[nodiscard]] static SettingKey integers(std::string path, std::string doc);
  [[nodiscard]] static SettingKey numbers(std::string path, std::string doc);
  [[nodiscard]] static SettingKey texts(std::string path, std::string doc);

  /// The value where none is given. Throws ArgumentError if it is not of the key's kind.
  SettingKey with_default(bool value) &&;
  SettingKey with_default(int value) &&;
  SettingKey with_default(std::int64_t value) &&;
  SettingKey with_default(double value) &&;
  SettingKey with_default(const char* value) &&;
  SettingKey with_defaults(std::initializer_list<int> values) &&;
  SettingKey with_defaults(std::initializer_list<double> values) &&;
  SettingKey with_defaults(std::initializer_list<const char*> values) &&;
  /// The default is the value of another key, such as schedule.total of train.steps.
  SettingKey default_from(std::string other_path) &&;
  /// The default follows from other values: `how` says it to people ("the steps of an epoch"), `compute` finds it once
  /// all other defaults are in place. Throws ArgumentError where a value it needs is missing.
  SettingKey worked_out(std::string how, std::function<SettingValue(const Settings&)> compute) &&;
  /// No default in the table: `who` decides ("the preset", "the configuration's file name"); Settings::has() is
  /// false unless the key was given.
  SettingKey decided_by(std::string who) &&;
  /// Has to be given.
  SettingKey required() &&;

  SettingKey between(double low, double high) &&;  // both ends allowed
  SettingKey at_least(double low) &&;
  SettingKey at_most(double high) &&;
  SettingKey above(double low) &&;
  SettingKey below(double high) &&;
  SettingKey one_of(std::vector<std::string> values) &&;
  SettingKey in(std::string measure) &&;  // unit: "steps", "prompts"
  /// Counts only where the text `other_path` is `value`: elsewhere the key has no value, not even a default, and to
  /// give it is a mistake.
  SettingKey only_with(std::string other_path, std::string value) &&;
  /// Names that other programs use for the same thing; they are not accepted, but lead to this key.
  SettingKey elsewhere_called(std::vector<std::string> names) &&;

  [[nodiscard]] std::string table() const;  // "task.curriculum" of "task.curriculum.enabled"
  [[nodiscard]] std::string name() const;   // "enabled"
  /// What a value has to be: `an integer in [1, 1024]`, `a number > 0`, `one of "fp32", "tf32"`.
  [[nodiscard]] std::string expected() const;
  /// "default: 20", "default: that of train.steps", "default: decided by the preset", "required", "no default".
  [[nodiscard]] std::string default_text() const;
  /// What is wrong with `value`, or nothing. A kind, a range, a choice, an empty text or a NaN can be.
  [[nodiscard]] std::optional<std::string> refuse(const SettingValue& value) const;

  std::string path;
  std::string doc;
  SettingKind kind = SettingKind::Integer;
  SettingValue fallback;                                 // std::monostate: see the three below
  std::string fallback_path;                             // the key whose value is the default
  std::function<SettingValue(const Settings&)> compute;  // what works the default out
  std::string decider;                          // who decides without a value, or what the default is worked out as
  std::string condition_path, condition_value;  // only_with()
  bool must_be_given = false;                   // an error if missing
  std::optional<SettingBound> minimum, maximum;
  std::vector<std::string> choices;
  std::vector<std::string> aliases;
  std::string unit;

 private:
  SettingKey(std::string key_path, std::string meaning, SettingKind key_kind);
};

/// Where a value came from.
struct SettingOrigin {
  enum class Source : std::uint8_t { Default, Preset, File, Override };
  Source source = Source::Default;
  std::string file;      // File: as the user named it
  int line = 0;          // File: counted from 1
  int column = 0;        // File: counted from 1, in characters
  std::string argument;  // Override: "optimizer.lr=3e-4"

  /// "configs/a.toml:7:6", "-o optimizer.lr=3e-4", "default" or "preset".
  [[nodiscard]] std::string str() const;
};

/// Resolved values by path, each with where it came from. A value is looked up with the kind it was declared with
/// (an integer also answers as a number); anything else is a mistake in the program and throws ArgumentError.
class Settings {
 public:
  [[nodiscard]] bool boolean(std::string_view path) const;
  [[nodiscard]] std::int64_t integer(std::string_view path) const;
  [[nodiscard]] double number(std::string_view path) const;
  [[nodiscard]] const std::string& text(std::string_view path) const;
  [[nodiscard]] const std::vector<std::int64_t>& integers(std::string_view path) const;
  [[nodiscard]] const std::vector<double>& numbers(std::string_view path) const;
  [[nodiscard]] const std::vector<std::string>& texts(std::string_view path) const;

  /// True if the key has a value, given or by default.
  [[nodiscard]] bool has(std::string_view path) const;
  /// True if the user gave it, in the file or with -o.
  [[nodiscard]] bool given(std::string_view path) const;
  [[nodiscard]] const SettingValue& value(std::string_view path) const;
  [[nodiscard]] const SettingOrigin& origin(std::string_view path) const;

  struct Entry {
    SettingValue value;
    SettingOrigin origin;
  };
  /// All values, sorted by path.
  [[nodiscard]] const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }

  void set(std::string path, SettingValue value, SettingOrigin origin = {});
  void erase(std::string_view path);

 private:
  template <class T>
  [[nodiscard]] const T& get(std::string_view path, const char* asked) const;
  std::map<std::string, Entry, std::less<>> entries_;
};

/// Collects what is wrong between keys.
class SettingMistakes {
 public:
  struct Mistake {
    std::vector<std::string> keys;  // those involved, the one to change first
    std::string message;            // without the key's name in front
  };
  void add(std::vector<std::string> keys, std::string message) {
    list_.push_back({std::move(keys), std::move(message)});
  }
  [[nodiscard]] const std::vector<Mistake>& list() const { return list_; }

 private:
  std::vector<Mistake> list_;
};

/// A condition between keys, run when every single value is in order.
using SettingCheck = std::function<void(const Settings&, SettingMistakes&)>;

/// The keys of one owner. `owner` is a value of the table's selector: task.name for [task], model.preset for
/// [model], optimizer.name for [optimizer], schedule.name for [schedule]. It becomes a choice of the selector, and the
/// keys are legal only when it is chosen. A key that exists already (model.positions, eval.baselines) is replaced by
/// the owner's declaration: that is how an owner brings its own default or choices. An empty owner adds keys that
/// are always legal.
struct SettingGroup {
  std::string table;
  std::string owner;
  std::string doc;
  std::vector<SettingKey> keys = {};
  std::vector<SettingCheck> checks = {};
  std::vector<std::string> tags = {};  // what other tables may ask about the owner: "tokens"
};

/// "task.name" for "task"; empty for a table without one.
[[nodiscard]] std::string_view selector_of(std::string_view table);

/// Adds a group for the rest of the program. At namespace scope in the owner's source file:
///
///   const RegisterSettings settings{{.table = "task", .owner = "linear_regression", .doc = "...", .keys = {...}}};
struct RegisterSettings {
  explicit RegisterSettings(SettingGroup group);
};

/// Whether the group of this table and owner carries a tag.
[[nodiscard]] bool has_tag(std::string_view table, std::string_view owner, std::string_view tag);

/// All registered groups, sorted by table and owner, so that nothing depends on the order of linking.
[[nodiscard]] std::vector<SettingGroup> registered_settings();

}  // namespace graft
