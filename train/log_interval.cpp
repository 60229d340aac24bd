#include "train/log_interval.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstddef>

#include "train/checkpoint_state.h"
#include "train/json_lines.h"

namespace graft {
namespace {

constexpr const char* kLossSum = "loss_sum";
constexpr const char* kFinite = "finite";
constexpr const char* kFirstSkipped = "first_skipped";
constexpr const char* kStep = "step";
constexpr const char* kTensor = "tensor";
constexpr double kMostElements = 9007199254740992.0;  // 2^53: no buffer has as many

/// A number, or the text that stands for one that is not finite.
bool is_number(const nlohmann::json& value) {
  return value.is_number() || value == "nan" || value == "inf" || value == "-inf";
}

/// A row as earlier versions kept it: the members of MetricsRow, in the first versions without the last two.
MetricsRow row_of(const nlohmann::json& saved, std::size_t index, std::int64_t step,
                  const std::filesystem::path& file) {
  const std::string field = fmt::format("interval[{}]", index);
  constexpr std::size_t kMembers = 7;
  if (!saved.is_array() || saved.size() < kMembers - 2 || saved.size() > kMembers) {
    throw_bad_field(file, field, saved, "5 to 7 numbers");
  }
  MetricsRow row;
  const std::array<double*, kMembers> members = {
      &row.step, &row.loss, &row.gradient_norm, &row.learning_rate, &row.skipped, &row.skipped_in_row, &row.first_bad};
  for (std::size_t i = 0; i < saved.size(); ++i) {
    if (!is_number(saved[i])) throw_bad_field(file, fmt::format("{}[{}]", field, i), saved[i], "a number");
    *members[i] = number_of(saved[i]);
  }
  if (!(row.step >= 1 && row.step <= static_cast<double>(step)) || row.step != std::floor(row.step)) {
    throw_bad_field(file, field + "[0]", saved[0], fmt::format("a step from 1 to {}", step));
  }
  if (!(row.first_bad >= kNormBad && row.first_bad < kMostElements)) {
    throw_bad_field(file, field + "[6]", saved[6], "an index of a gradient");
  }
  return row;
}

}  // namespace

void LogInterval::add(const MetricsRow& row) {
  if (std::isfinite(row.loss)) {
    loss_sum_ += row.loss;
    ++finite_;
  }
  if (row.was_skipped() && !first_skipped_) {
    first_skipped_ = {static_cast<std::int64_t>(row.step), static_cast<std::int64_t>(row.first_bad)};
  }
}

double LogInterval::mean_loss() const { return finite_ > 0 ? loss_sum_ / static_cast<double>(finite_) : std::nan(""); }

nlohmann::json LogInterval::json() const {
  nlohmann::json saved = {{kLossSum, loss_sum_}, {kFinite, finite_}};
  if (first_skipped_) saved[kFirstSkipped] = {{kStep, first_skipped_->step}, {kTensor, first_skipped_->tensor}};
  return with_finite_numbers(saved);
}

LogInterval LogInterval::from_json(const nlohmann::json& saved, std::int64_t step, const std::filesystem::path& file) {
  LogInterval interval;
  if (saved.is_array()) {
    for (std::size_t i = 0; i < saved.size(); ++i) interval.add(row_of(saved[i], i, step, file));
    return interval;
  }
  const StateObject object(saved, "interval", file);
  const nlohmann::json& sum = object.at(kLossSum);
  if (!is_number(sum)) object.refuse(kLossSum, "a number");
  interval.loss_sum_ = number_of(sum);
  interval.finite_ = object.integer(kFinite, 0, step);
  if (interval.finite_ == 0 && interval.loss_sum_ != 0) object.refuse(kLossSum, "0, the sum of no losses");
  if (saved.contains(kFirstSkipped)) {
    const StateObject skipped(saved[kFirstSkipped], "interval.first_skipped", file);
    interval.first_skipped_ = {skipped.integer(kStep, 1, step),
                               skipped.integer(kTensor, kNormBad, static_cast<std::int64_t>(kMostElements))};
  }
  return interval;
}

}  // namespace graft
