#pragma once
// The one table of all keys: those every run has, and those that tasks and presets registered.

#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"
#include "train/suggest.h"

namespace graft {

/// All declared keys. What is legal depends on the owners a configuration selects: Schema::active().
class Schema {
 public:
  /// The common keys and everything registered so far.
  Schema();

  /// A declaration and its owner; `group` is null for a key every run has.
  struct Declaration {
    const SettingKey* key = nullptr;
    const SettingGroup* group = nullptr;
  };
  /// All declarations of a path, the common one first; empty if nobody knows it.
  [[nodiscard]] std::vector<Declaration> declarations(std::string_view path) const;
  /// All declarations, by path and then by owner.
  [[nodiscard]] std::vector<Declaration> all() const;
  [[nodiscard]] bool is_table(std::string_view path) const;
  /// Every table, "task.curriculum" included, sorted.
  [[nodiscard]] const std::vector<std::string>& tables() const { return tables_; }
  /// Values a selector can take: its own choices and the owners registered for its table.
  [[nodiscard]] std::vector<std::string> owners(std::string_view table) const;
  [[nodiscard]] const std::vector<SettingKey>& common() const { return common_; }
  [[nodiscard]] const std::vector<SettingGroup>& groups() const { return groups_; }

  /// The groups in force when `selected(selector key)` returns what each selector says ("" for nothing).
  template <class Selected>
  [[nodiscard]] std::vector<const SettingGroup*> chosen(const Selected& selected) const {
    std::vector<const SettingGroup*> list;
    for (const SettingGroup& group : groups_) {
      if (group.owner.empty() || group.owner == selected(selector_of(group.table))) list.push_back(&group);
    }
    return list;
  }
  /// The declarations in force with these groups: an owner's declaration replaces the common one of the same path.
  [[nodiscard]] std::vector<Declaration> active(const std::vector<const SettingGroup*>& groups) const;

  /// Candidates for nearest_key(); those in `active` are preferred.
  [[nodiscard]] std::vector<KeyCandidate> candidates(const std::vector<Declaration>& active) const;

 private:
  std::vector<SettingKey> common_;
  std::vector<SettingGroup> groups_;
  std::vector<std::string> tables_;
};

/// Conditions between common keys: a warm-up ends before the schedule, evaluation prompts fill batches, ... Those of
/// tasks and models are registered where these are.
void check_common(const Settings& settings, SettingMistakes& mistakes);

/// What a person wants to know of a key: meaning, type, range, default, unit, who it belongs to.
[[nodiscard]] std::string explain_key(const Schema& schema, std::string_view path);

/// The schema as a JSON Schema (draft 7) document, for editors that complete and check TOML files.
[[nodiscard]] std::string json_schema(const Schema& schema);

}  // namespace graft
