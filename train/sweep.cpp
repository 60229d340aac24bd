#include "train/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "engine/error.h"
#include "train/file_io.h"
#include "train/run_name.h"
#include "train/suggest.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostShown = 50;
constexpr std::size_t kMostWrongPoints = 20;  // behind them, what is wrong repeats itself
constexpr std::size_t kLongestPointName = 200;
constexpr std::size_t kLongestLine = 120;

/// A key of a grid or of sweep.set with its values.
struct Axis {
  std::string path;
  SettingOrigin key_origin;
  std::vector<RawSetting> values;
  bool named = true;  // the values are part of the runs' names
};
using Grid = std::vector<Axis>;

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

/// "model.width" of the key `"model.width"`; other quoted names stay as they are and are unknown keys.
std::string without_quotes(const std::string& name) {
  if (name.size() < 2 || name.front() != '"' || name.find_first_of("\\ ") != std::string::npos) return name;
  return name.substr(1, name.size() - 2);
}

class SweepReader {
 public:
  SweepReader(const std::string& path, const std::vector<std::string>& overrides)
      : path_(path), text_(read_config_file(path)), raw_(parse_toml(text_, path)) {
    sweep_.path = path;
    for (const std::string& argument : overrides) {
      if (auto entry = parse_override(argument, raw_.mistakes)) last_.push_back(std::move(*entry));
    }
    for (const ConfigMistake& mistake : raw_.mistakes) add(mistake.origin, mistake.key, mistake.message);
  }

  Sweep read() {
    if (!raw_.complete) throw_mistakes();
    read_tables();
    if (!paragraphs_.empty()) throw_mistakes();
    check_overrides();
    if (!paragraphs_.empty()) throw_mistakes();
    read_base();
    for (const Grid& grid : grids_) add_points(grid);
    if (!paragraphs_.empty()) throw_mistakes();
    check_points();
    if (!paragraphs_.empty()) throw_mistakes();
    return std::move(sweep_);
  }

 private:
  void add(const SettingOrigin& origin, const std::string& key, const std::string& message) {
    const bool here = origin.line > 0 || origin.source == SettingOrigin::Source::Override;
    add_paragraph(
        fmt::format("{}: {}{}{}\n", here ? shown(origin.str(), 512) : path_, key, key.empty() ? "" : ": ", message));
  }

  /// Runs share most of their configuration, and so their mistakes: each is kept once.
  void add_paragraph(const std::string& paragraph) {
    if (known_.insert(paragraph).second) paragraphs_.push_back(paragraph);
  }

  void read_tables() {
    const auto& top = raw_.root.children;
    const auto table =
        std::find_if(top.begin(), top.end(), [](const RawSetting& child) { return child.name == "sweep"; });
    if (table == top.end() || !table->is_table) {
      for (const RawSetting& child : top) {
        if (nearest_name(child.name, {"sweep"}).empty()) continue;
        add(child.key_origin, shown(child.name), "expected a table [sweep]");
        return;
      }
      if (paragraphs_.empty()) {
        add({}, "sweep", "missing, expected a table [sweep] with `base`; a single configuration is for graft train");
      }
      return;
    }
    for (const RawSetting& child : top) {
      if (&child == &*table) continue;
      add(child.key_origin, shown(child.name),
          "not part of a sweep, which is [sweep], [[sweep.grid]] and [sweep.stop]; keys of the runs go to sweep.set or "
          "into a grid");
    }
    bool has_base = false;
    bool has_grid = false;
    static const std::vector<std::string> kKeys = {"base", "grid", "name", "set", "stop"};
    for (const RawSetting& child : table->children) {
      if (child.name == "name") {
        read_name(child);
      } else if (child.name == "base") {
        has_base = true;
        base_origin_ = child.value_origin;
        if (const auto* text = std::get_if<std::string>(&child.value)) {
          sweep_.base = *text;
        } else {
          add(child.value_origin, "sweep.base", fmt::format("got {}, expected a file's name", child.phrase));
        }
      } else if (child.name == "set") {
        if (child.is_table) {
          collect(child, "", common_, Values::One);
          sort(common_);
        } else {
          refuse(child, "sweep.set", "a table of keys and values");
        }
      } else if (child.name == "stop") {
        read_stop(child);
      } else if (child.name == "grid") {
        has_grid = true;
        read_grids(child);
      } else {
        const std::string nearest = nearest_name(child.name, kKeys);
        add(child.key_origin, "sweep." + shown(child.name),
            fmt::format("unknown key{}", nearest.empty() ? "; [sweep] has base, grid, name, set, stop"
                                                         : fmt::format("; did you mean `sweep.{}`?", nearest)));
        has_base = has_base || nearest == "base";
        has_grid = has_grid || nearest == "grid";
      }
    }
    if (sweep_.name.empty()) sweep_.name = run_name_from(fs::path(path_).stem().stem().string());
    if (!raw_.mistakes.empty()) return;  // a missing key may stand in a line that could not be read
    if (!has_base) add(table->key_origin, "sweep.base", "missing, expected the name of a configuration's file");
    if (!has_grid) add(table->key_origin, "sweep.grid", "missing, expected tables [[sweep.grid]] of keys and arrays");
  }

  void refuse(const RawSetting& setting, const std::string& key, std::string_view expected) {
    add(setting.value_origin, key, fmt::format("got {}, expected {}", setting.phrase, expected));
  }

  void read_name(const RawSetting& setting) {
    const auto* text = std::get_if<std::string>(&setting.value);
    if (text == nullptr || !is_run_name(*text)) {
      refuse(setting, "sweep.name", kRunNameRule);
      sweep_.name = "refused";
    } else {
      sweep_.name = *text;
    }
  }

  void read_stop(const RawSetting& table) {
    if (!table.is_table) {
      refuse(table, "sweep.stop", "a table [sweep.stop] with `above` or `below`");
      return;
    }
    static const std::map<std::string, std::string> kPaths = {{"above", "eval.stop_above"},
                                                              {"below", "eval.stop_below"},
                                                              {"first", "eval.stop_from"},
                                                              {"last", "eval.stop_to"}};
    for (const RawSetting& child : table.children) {
      if (const auto found = kPaths.find(child.name); found != kPaths.end()) {
        common_.push_back({found->second, child.key_origin, {child}, false});
        continue;
      }
      const std::string nearest = nearest_name(child.name, {"above", "below", "first", "last"});
      add(child.key_origin, "sweep.stop." + shown(child.name),
          fmt::format("unknown key{}", nearest.empty() ? "; [sweep.stop] has above, below, first, last"
                                                       : fmt::format("; did you mean `sweep.stop.{}`?", nearest)));
    }
  }

  enum class Values : std::uint8_t { One, Several };

  /// The keys of a table with their full paths.
  void collect(const RawSetting& table, const std::string& prefix, Grid& into, Values values) {
    for (const RawSetting& child : table.children) {
      const std::string name = without_quotes(child.name);
      const std::string path = prefix.empty() ? name : fmt::format("{}.{}", prefix, name);
      if (child.is_table) {
        collect(child, path, into, values);
        continue;
      }
      if (path == "run.name") {
        add(child.key_origin, path, "does not belong into a sweep, whose runs are named after their values");
        continue;
      }
      if (std::any_of(into.begin(), into.end(), [&](const Axis& axis) { return axis.path == path; })) {
        add(child.key_origin, shown(path), "given a second time, expected once");
        continue;
      }
      Axis axis{path, child.key_origin, {}, false};
      if (values == Values::One || (child.children.empty() && !child.is_empty_array)) {
        axis.values = {child};
      } else if (child.is_empty_array) {
        add(child.value_origin, shown(path), "got an empty array, expected at least one value");
        continue;
      } else {
        axis.values = child.children;
        axis.named = true;
      }
      into.push_back(std::move(axis));
    }
  }

  static void sort(Grid& grid) {
    std::stable_sort(grid.begin(), grid.end(), [](const Axis& a, const Axis& b) {
      return std::tie(a.key_origin.line, a.key_origin.column) < std::tie(b.key_origin.line, b.key_origin.column);
    });
  }

  void read_grids(const RawSetting& setting) {
    std::vector<const RawSetting*> tables;
    if (setting.is_table) {
      tables.push_back(&setting);  // [sweep.grid]: there is one
    } else if (!setting.children.empty() && setting.children.front().is_table) {
      for (const RawSetting& table : setting.children) tables.push_back(&table);
    } else {
      refuse(setting, "sweep.grid", "tables [[sweep.grid]] of keys and arrays");
    }
    std::size_t total = 0;
    for (const RawSetting* table : tables) {
      if (!table->is_table) {
        refuse(*table, "sweep.grid", "a table of keys and arrays");
        continue;
      }
      Grid grid;
      collect(*table, "", grid, Values::Several);
      sort(grid);
      if (table->children.empty()) add(table->key_origin, "sweep.grid", "got no key, expected keys and arrays");
      std::size_t points = 1;
      for (const Axis& axis : grid) points = std::min(points * axis.values.size(), kMostSweepPoints + 1);
      total += points;
      if (total > kMostSweepPoints) {
        add(table->key_origin, "sweep.grid",
            fmt::format("got more than {0} runs, expected at most {0} in a sweep", kMostSweepPoints));
        return;
      }
      grids_.push_back(std::move(grid));
    }
  }

  /// -o gives all runs one value. For a key that tells runs apart, and by which they are called, that would be the same
  /// run several times, each under the name of another.
  void check_overrides() {
    for (const RawOverride& entry : last_) {
      for (const Grid& grid : grids_) {
        for (const Axis& axis : grid) {
          if (!axis.named || axis.path != entry.path) continue;
          const std::size_t values = axis.values.size();
          add(axis.key_origin, axis.path,
              fmt::format("{} would give this one value to {}; leave it out, or change the values here",
                          entry.setting.key_origin.str(),
                          values == 1 ? std::string("runs that are named after the grid's")
                                      : fmt::format("runs that the grid's {} values tell apart", values)));
        }
      }
    }
  }

  void read_base() {
    const fs::path base = fs::path(path_).parent_path() / sweep_.base;
    try {
      sweep_.base_text = read_config_file(base.lexically_normal().string());
    } catch (const ConfigError& error) {
      add(base_origin_, "sweep.base", error.what());
      throw_mistakes();
    }
    sweep_.base = base.lexically_normal().string();
  }

  /// What stands for a key in the runs' names: its last part, the table for "table.name", and the whole path where two
  /// keys would have the same.
  std::map<std::string, std::string> labels() const {
    const auto shortened = [](const std::string& path) {
      const std::size_t dot = path.rfind('.');
      if (dot == std::string::npos) return path;
      const std::string part = path.substr(dot + 1);
      return part == "name" ? path.substr(0, dot) : part;
    };
    std::map<std::string, std::set<std::string>> users;
    for (const Grid& grid : grids_) {
      for (const Axis& axis : grid) {
        if (axis.named) users[shortened(axis.path)].insert(axis.path);
      }
    }
    std::map<std::string, std::string> result;
    for (const auto& [label, paths] : users) {
      for (const std::string& path : paths) result[path] = paths.size() == 1 ? label : path;
    }
    return result;
  }

  static std::string value_label(const RawSetting& value) {
    const auto* text = std::get_if<std::string>(&value.value);
    std::string label = text != nullptr ? *text : toml_text(value.value);
    if (label.empty()) label = "none";
    for (char& c : label) {
      if (!is_run_name(std::string("x") + c) || c == '+' || c == '=') c = '_';
    }
    return label;
  }

  static RawOverride override_of(const Axis& axis, const RawSetting& value) {
    RawOverride entry;
    entry.path = axis.path;
    entry.setting = value;
    entry.setting.key_origin = axis.key_origin;
    entry.bare = toml_text(value.value);
    return entry;
  }

  void add_points(const Grid& grid) {
    const std::map<std::string, std::string> label = labels();
    std::vector<std::size_t> at(grid.size(), 0);
    for (;;) {
      SweepPoint point;
      for (const Axis& axis : common_) point.overrides.push_back(override_of(axis, axis.values.front()));
      for (std::size_t i = 0; i < grid.size(); ++i) {
        const RawSetting& value = grid[i].values[at[i]];
        point.overrides.push_back(override_of(grid[i], value));
        if (!grid[i].named) continue;
        point.name += fmt::format("{}{}={}", point.name.empty() ? "" : "+", label.at(grid[i].path), value_label(value));
      }
      if (point.name.empty()) point.name = "run";
      file(std::move(point), grid);
      std::size_t i = grid.size();
      while (i > 0 && ++at[i - 1] == grid[i - 1].values.size()) at[--i] = 0;
      if (i == 0) return;
    }
  }

  void file(SweepPoint point, const Grid& grid) {
    const SettingOrigin origin = grid.empty() ? SettingOrigin() : grid.front().key_origin;
    if (point.name.size() > kLongestPointName) {
      add(origin, "sweep.grid",
          fmt::format("the run {} would have a name of {} bytes, expected at most {}; a key with one value needs no "
                      "array and is then not part of the name",
                      shown(point.name), point.name.size(), kLongestPointName));
      return;
    }
    if (!names_.insert(point.name).second) {
      add(origin, "sweep.grid",
          fmt::format("two runs would be called {}; write what tells them apart as arrays", point.name));
      return;
    }
    RawOverride name;
    name.path = "run.name";
    name.setting.value = run_name_from(fmt::format("{}-{}", sweep_.name, point.name));
    point.overrides.push_back(std::move(name));
    point.overrides.insert(point.overrides.end(), last_.begin(), last_.end());
    sweep_.points.push_back(std::move(point));
    origins_.push_back(origin);
  }

  void check_points() {
    std::size_t wrong = 0;
    std::map<std::string, const SweepPoint*> known;  // by all that a run is made of, its name left out
    for (std::size_t i = 0; i < sweep_.points.size(); ++i) {
      SweepPoint& point = sweep_.points[i];
      try {
        RunConfig config = sweep_.config(point);
        point.hash = config_hash8(config);
        point.steps = config.train.steps;
        point.stop = StopRule::of(config);
        config.settings.erase("run.name");
        const auto [same, is_new] = known.emplace(digest_of_text(resolved_toml(config)).xxh3_128, &point);
        if (is_new) continue;
        add(origins_[i], "sweep.grid",
            fmt::format("the runs {} and {} would be the same, their configurations being equal in all but run.name{}; "
                        "leave one of them out, or give them different values",
                        same->second->name, point.name,
                        last_.empty() ? "" : " (-o counts more than the values of a grid)"));
      } catch (const ConfigError& error) {
        take_mistakes(error.what());
      }
      if (++wrong == kMostWrongPoints) return;
    }
  }

  /// Takes over another reader's paragraphs, all but its summary.
  void take_mistakes(std::string_view message) {
    std::string paragraph;
    for (const std::string_view line : lines_of(message.substr(0, message.rfind('\n')))) {
      if (!line.starts_with("  ") && !paragraph.empty()) add_paragraph(std::exchange(paragraph, {}));
      paragraph += fmt::format("{}\n", line);
    }
    if (!paragraph.empty()) add_paragraph(paragraph);
  }

  /// Line and column of this file that a paragraph is about; (0, 0) if it is about something else.
  [[nodiscard]] std::pair<int, int> place_of(const std::string& paragraph) const {
    std::pair<int, int> place;
    if (!paragraph.starts_with(path_ + ":")) return {0, 0};
    const char* const end = paragraph.data() + paragraph.size();
    const auto [after, problem] = std::from_chars(paragraph.data() + path_.size() + 1, end, place.first);
    if (problem != std::errc() || after == end || *after != ':') return {0, 0};
    return std::from_chars(after + 1, end, place.second).ec == std::errc() ? place : std::pair<int, int>();
  }

  /// The line that a paragraph is about, with a mark: the reader of configurations does not have this file's text.
  [[nodiscard]] std::string excerpt(const std::string& paragraph) const {
    const auto [line, column] = place_of(paragraph);
    const std::vector<std::string_view> lines = lines_of(text_);
    if (line < 1 || line > static_cast<int>(lines.size()) || paragraph.find('\n') + 1 != paragraph.size()) return {};
    const std::string_view source = lines[static_cast<std::size_t>(line) - 1];
    if (source.size() > kLongestLine || column < 1 || column > static_cast<int>(source.size()) + 1) return {};
    const std::string number = fmt::format("{}", line);
    return fmt::format("  {} | {}\n  {:{}} | {:{}}^\n", number, shown(source, kLongestLine), "", number.size(), "",
                       column - 1);
  }

  [[noreturn]] void throw_mistakes() {
    std::stable_sort(paragraphs_.begin(), paragraphs_.end(),
                     [&](const auto& a, const auto& b) { return place_of(a) < place_of(b); });
    std::string out;
    for (std::size_t i = 0; i < std::min(paragraphs_.size(), kMostShown); ++i) {
      out += paragraphs_[i] + excerpt(paragraphs_[i]);
    }
    if (paragraphs_.size() > kMostShown) out += fmt::format("... and {} more\n", paragraphs_.size() - kMostShown);
    out += fmt::format("{}: {} mistake{}; `graft config explain KEY` says what a key takes", shown(path_, 256),
                       paragraphs_.size(), paragraphs_.size() == 1 ? "" : "s");
    throw ConfigError(out);
  }

  std::string path_, text_;
  RawConfig raw_;
  Sweep sweep_;
  SettingOrigin base_origin_;
  Grid common_;
  std::vector<Grid> grids_;
  std::vector<SettingOrigin> origins_;  // of the points: the first key of their table
  std::vector<RawOverride> last_;       // -o
  std::set<std::string> names_, known_;
  std::vector<std::string> paragraphs_;
};

}  // namespace

RunConfig Sweep::config(const SweepPoint& point) const { return parse_config_with(base_text, base, point.overrides); }

Sweep load_sweep(const std::string& path, const std::vector<std::string>& overrides) {
  return SweepReader(path, overrides).read();
}

}  // namespace graft
