#include "train/checkpoint_state.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <utility>

#include "engine/error.h"
#include "train/log_interval.h"

namespace graft {
namespace {

using nlohmann::json;

constexpr double kMostLearningRate = 1e3;  // of optimizer.lr
constexpr std::size_t kLongestText = 80;

/// A value as a message shows it.
std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  if (text.size() > kLongestText) text = text.substr(0, kLongestText) + "...";
  return text;
}

}  // namespace

void throw_bad_field(const std::filesystem::path& file, std::string_view field, const json& value,
                     std::string_view expected) {
  throw DataError(fmt::format("checkpoint: {}: {} is {}, expected {}", file.string(), field, shown(value), expected));
}

StateObject::StateObject(const json& object, std::string name, std::filesystem::path file)
    : object_(object), name_(std::move(name)), file_(std::move(file)) {
  if (!object_.is_object()) throw_bad_field(file_, name_.empty() ? "its content" : name_, object_, "an object");
}

std::string StateObject::name_of(const char* key) const {
  return name_.empty() ? key : fmt::format("{}.{}", name_, key);
}

const json& StateObject::at(const char* key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) {
    throw DataError(fmt::format("checkpoint: {}: {} is missing", file_.string(), name_of(key)));
  }
  return *found;
}

void StateObject::refuse(const char* key, std::string_view expected) const {
  throw_bad_field(file_, name_of(key), at(key), expected);
}

std::int64_t StateObject::integer(const char* key, std::int64_t least, std::int64_t most) const {
  const json& value = at(key);
  // An unsigned one beyond the signed range would come back as another number.
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
                        : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
    refuse(key, least == most ? fmt::format("{}", least) : fmt::format("an integer from {} to {}", least, most));
  }
  return value.get<std::int64_t>();
}

std::uint64_t StateObject::count(const char* key) const {
  const json& value = at(key);
  const bool fits = value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0);
  if (!fits) refuse(key, "an integer from 0 on");
  return value.get<std::uint64_t>();
}

double StateObject::number(const char* key) const {
  if (!at(key).is_number()) refuse(key, "a finite number");
  return at(key).get<double>();
}

std::string StateObject::text(const char* key) const {
  if (!at(key).is_string()) refuse(key, "a text");
  return at(key).get<std::string>();
}

StepState step_state_in(const json& state, std::int64_t step, const std::filesystem::path& file) {
  const StateObject saved(StateObject(state, "", file).at("step_state"), "step_state", file);
  StepState result;
  result.step = static_cast<std::uint64_t>(saved.integer("step", step, step));
  result.seed = saved.count("seed");
  // The tenth skipped update in a row is counted, its step is not: see kMostSkippedInRow.
  result.skipped = static_cast<std::uint64_t>(saved.integer("skipped", 0, step + 1));
  if (saved.has("skipped_in_row")) {  // checkpoints of the first versions lack it
    result.skipped_in_row = static_cast<std::uint32_t>(saved.integer("skipped_in_row", 0, kMostSkippedInRow));
    if (result.skipped_in_row > result.skipped) {
      saved.refuse("skipped_in_row", fmt::format("at most {}, as many as were skipped at all", result.skipped));
    }
  }
  const std::uint64_t done = result.step + (result.skipped_in_row == kMostSkippedInRow ? 1 : 0);
  if (result.skipped > done) saved.refuse("skipped", fmt::format("at most {}", done));
  result.updates = saved.count("updates");
  if (result.updates != done - result.skipped) {
    saved.refuse("updates", fmt::format("{}: step {} with {} skipped updates", done - result.skipped, result.step,
                                        result.skipped));
  }
  result.learning_rate = saved.number("learning_rate");
  if (!(result.learning_rate >= 0 && result.learning_rate <= kMostLearningRate * (1 + 1e-9))) {  // it is rounded
    saved.refuse("learning_rate", fmt::format("a number from 0 to {}", kMostLearningRate));
  }
  for (const auto& [key, value] : {std::pair{"bias_correction1", &result.bias_correction1},
                                   std::pair{"bias_correction2", &result.bias_correction2}}) {
    *value = saved.number(key);
    if (!(*value > 0 && *value <= 1)) saved.refuse(key, "a number above 0 and at most 1");
  }
  return result;
}

void check_state(const json& state, std::int64_t step, const std::filesystem::path& file) {
  const StateObject saved(state, "", file);
  const StepState step_state = step_state_in(state, step, file);
  static_cast<void>(saved.text("config_hash"));
  if (saved.count("seed") != step_state.seed) {
    saved.refuse("seed", fmt::format("{} as in step_state", step_state.seed));
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  // The first versions saved neither a curriculum's stage nor how many updates were skipped in a row.
  if (saved.has("curriculum") || saved.at("step_state").contains("skipped_in_row")) {
    const StateObject curriculum(saved.at("curriculum"), "curriculum", file);
    for (const char* key : {"points", "dims"}) static_cast<void>(curriculum.integer(key, 0, kMost));
  }
  if (saved.has("device")) static_cast<void>(saved.text("device"));
  // Those of another run's or branch's logs are left out.
  for (const char* key : {"metrics_bytes", "eval_bytes", "examples"}) {
    if (saved.has(key)) static_cast<void>(saved.count(key));
  }
  if (saved.has("interval")) static_cast<void>(LogInterval::from_json(saved.at("interval"), step, file));
}

}  // namespace graft
