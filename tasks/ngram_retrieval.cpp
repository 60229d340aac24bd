#include "tasks/ngram_retrieval.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tasks/token_task.h"

namespace graft {
namespace {

/// An example is right, at the level of the string, if all `target` predictions are.
class NgramRetrievalTask final : public TokenTask<NgramRetrieval> {
 public:
  using TokenTask::TokenTask;
  [[nodiscard]] std::vector<std::int64_t> answer_points() const override {
    std::vector<std::int64_t> points(static_cast<std::size_t>(law().predictions()));
    std::iota(points.begin(), points.end(), std::int64_t{0});
    return points;
  }
  [[nodiscard]] std::string description() const override {
    const NgramRetrieval& l = law();
    const std::string lengths = l.length_min == l.length_max ? fmt::format("{}", l.length_max)
                                                             : fmt::format("{}..{}", l.length_min, l.length_max);
    return fmt::format(
        "n-gram retrieval: the {} symbols after a {}-gram that occurs once, strings of {} symbols (evaluation: {}) "
        "over an alphabet of {}, query as a {}",
        l.target, l.query, lengths, l.eval_length, l.alphabet, l.prefix ? "prefix" : "suffix");
  }
};

int integer(const Settings& settings, const char* key) { return static_cast<int>(settings.integer(key)); }

NgramRetrieval law_of(const Settings& settings) {
  return {.length_min = integer(settings, "task.length_min"),
          .length_max = integer(settings, "task.length_max"),
          .eval_length = integer(settings, "task.eval_length"),
          .alphabet = integer(settings, "task.alphabet"),
          .query = integer(settings, "task.query"),
          .target = integer(settings, "task.target"),
          .prefix = settings.text("task.layout") == "prefix"};
}

/// The chance that a draw is accepted: none of the other n-grams of a string is the query, were they independent.
double acceptance(const NgramRetrieval& law, int length) {
  return std::pow(1 - std::pow(law.alphabet, -law.query), length - law.query);
}

void check(const Settings& settings, SettingMistakes& mistakes) {
  const NgramRetrieval law = law_of(settings);
  if (law.length_min > law.length_max) {
    mistakes.add({"task.length_min", "task.length_max"},
                 fmt::format("got {}, expected at most task.length_max = {}", law.length_min, law.length_max));
    return;
  }
  for (const auto& [key, shortest] :
       {std::pair{"task.length_min", law.length_min}, std::pair{"task.eval_length", law.eval_length}}) {
    if (shortest >= law.query + law.target) continue;
    mistakes.add({key, "task.query", "task.target"},
                 fmt::format("got {}, expected at least {}: a string has room for the query of {} and the target of {}",
                             shortest, law.query + law.target, law.query, law.target));
  }
  const bool in_training = law.length_max >= law.eval_length;
  const int longest = in_training ? law.length_max : law.eval_length;
  if (longest < law.query) return;  // a mistake already
  if (const double chance = acceptance(law, longest); chance < NgramRetrieval::kLeastAcceptance) {
    mistakes.add({"task.query", "task.alphabet", in_training ? "task.length_max" : "task.eval_length"},
                 fmt::format("got {}: in a string of {} symbols over an alphabet of {}, a {}-gram occurs once with a "
                             "probability of {:.2g}, expected at least {}; use a longer query, a larger alphabet or "
                             "shorter strings",
                             law.query, longest, law.alphabet, law.query, chance, NgramRetrieval::kLeastAcceptance));
  }
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "ngram_retrieval",
    .doc = "which symbols follow an n-gram that occurs once in a random string?",
    .keys =
        {
            SettingKey::integer("task.length_min", "shortest string in training").with_default(50).between(2, 4096),
            SettingKey::integer("task.length_max", "longest string in training").with_default(100).between(2, 4096),
            SettingKey::integer("task.eval_length", "length of the strings in evaluation")
                .with_default(100)
                .between(2, 4096),
            SettingKey::text("task.layout", "whether the query comes after the string or before it")
                .with_default("suffix")
                .one_of({"suffix", "prefix"}),
            SettingKey::integer("task.alphabet", "symbols a string is made of").with_default(30).between(2, 32768),
            SettingKey::integer("task.query", "symbols of the query, n").with_default(2).between(1, 64),
            SettingKey::integer("task.target", "symbols to retrieve, k").with_default(3).between(1, 64),
        },
    .checks = {check},
    .tags = {"tokens"},
}};

const RegisterTask registered{{"ngram_retrieval", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<NgramRetrievalTask>(law_of(settings), sample_ngram_retrieval);
                               }}};

const Register cpu_sampler{sample_ngram_retrieval, Backend::Cpu, sample_tokens_cpu<NgramRetrieval>};

}  // namespace
}  // namespace graft
