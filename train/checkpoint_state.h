#pragma once
// What state.json of a checkpoint says. A checksum tells that it is what was written, not that a run can have been in
// that state: somebody may have edited the file, or another program written it.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/step_state.h"

namespace graft {

/// More than any configuration may ask for is the step of no checkpoint.
inline constexpr std::int64_t kMostCheckpointStep = 1'000'000'000'000;

/// Throws DataError: `field` of `file` is `value`, and something else was expected.
[[noreturn]] void throw_bad_field(const std::filesystem::path& file, std::string_view field,
                                  const nlohmann::json& value, std::string_view expected);

/// An object of such a file. All functions throw DataError naming file and field, what came and what was expected.
class StateObject {
 public:
  /// `name` as messages have it; empty for the whole file.
  StateObject(const nlohmann::json& object, std::string name, std::filesystem::path file);

  [[nodiscard]] bool has(const char* key) const { return object_.contains(key); }
  [[nodiscard]] const nlohmann::json& at(const char* key) const;
  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const;
  /// An integer from 0 on.
  [[nodiscard]] std::uint64_t count(const char* key) const;
  [[nodiscard]] double number(const char* key) const;
  [[nodiscard]] std::string text(const char* key) const;
  /// The member is there and is not what was expected.
  [[noreturn]] void refuse(const char* key, std::string_view expected) const;

 private:
  [[nodiscard]] std::string name_of(const char* key) const;
  const nlohmann::json& object_;
  std::string name_;
  std::filesystem::path file_;
};

/// The step state in the state of a checkpoint of `step`. Throws DataError where no run can have been in it: a step
/// that is another one, updates that are not one for each step that was not skipped, rates and corrections out of
/// range.
[[nodiscard]] StepState step_state_in(const nlohmann::json& state, std::int64_t step,
                                      const std::filesystem::path& file);

/// Checks all that is read of a state and can be told without the run's configuration. Throws DataError.
void check_state(const nlohmann::json& state, std::int64_t step, const std::filesystem::path& file);

}  // namespace graft
