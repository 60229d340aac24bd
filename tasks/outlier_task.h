#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"
#include "tasks/outlier_mask.h"
#include "tasks/regression_task.h"

namespace graft {

/// Linear regression among outliers. Loss and scores are means over all clean points of a batch, not means of prompts'
/// means; outliers stay in the context.
///
/// Suites, both at the full number of points:
///   no_outliers  prompts of plain linear regression
///   fixed_mask   outliers where OutlierMask::fixed_layout() puts them, the same in every prompt: a position is a
///   number
///                of clean examples seen, and positions of outliers have no score (NaN)
///
/// The law has dim, mask, settled by suite(), and `name`, as in "many-outlier regression".
template <class Law>
class OutlierTask final : public RegressionTask<Law> {
 public:
  using RegressionTask<Law>::RegressionTask;

  [[nodiscard]] std::vector<std::string> suites() const override { return {"no_outliers", "fixed_mask"}; }
  [[nodiscard]] std::unique_ptr<Task> suite(std::string_view name) const override {
    Law law = this->law();
    if (name == "no_outliers") {
      law.mask = OutlierMask::none();
    } else if (name == "fixed_mask") {
      law.mask = OutlierMask::fixed_layout(law.probability);
    } else {
      return Task::suite(name);  // throws
    }
    return std::make_unique<OutlierTask>(law, this->curriculum(), this->final_points(), this->sampler());
  }

  [[nodiscard]] std::vector<std::string> baselines() const override { return {"zero", "least_squares_clean"}; }
  /// With random masks the points that count are others in every prompt, and the first one is as good as any.
  [[nodiscard]] Headline headline() const override {
    const OutlierMask& mask = this->law().mask;
    return mask.fixed || mask.probability == 0 ? Headline::MeanFromSecond : Headline::Pooled;
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    return this->law().text_of(prompt.truth);
  }
  [[nodiscard]] std::string description() const override {
    const OutlierMask& mask = this->law().mask;
    std::string where = fmt::format("each with probability {}", this->law().probability);
    if (mask.fixed) {
      where = fmt::format("all but every {}th", mask.spacing);
      if (mask.marks_outliers) where = mask.spacing > 0 ? fmt::format("every {}th", mask.spacing) : "none";
    } else if (mask.probability == 0) {
      where = "none";
    }
    return fmt::format("{} (outliers: {}), {} points", this->law().text(), where, this->final_points());
  }
};

/// The keys of a task with outliers: dim (at least `least_dim`), points and probability.
[[nodiscard]] inline std::vector<SettingKey> outlier_keys(int least_dim, int points, double probability) {
  return {
      SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(least_dim, 1024),
      SettingKey::integer("task.points", "points of a prompt, outliers included, the last one a query")
          .with_default(points)
          .between(1, 8192),
      SettingKey::number("task.outlier_probability", "probability that a point is an outlier")
          .with_default(probability)
          .at_least(0)
          .below(1),
  };
}

/// A probability below 1 that rounds to 1 in single precision, in which the draws are, leaves no point to score.
inline void check_outlier_probability(const Settings& settings, SettingMistakes& mistakes) {
  const double probability = settings.number("task.outlier_probability");
  if (static_cast<float>(probability) < 1.F) return;
  mistakes.add({"task.outlier_probability"}, fmt::format("got {}, which is 1 in single precision, expected at most {}",
                                                         probability, std::nextafter(1.F, 0.F)));
}

}  // namespace graft
