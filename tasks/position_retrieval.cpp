#include "tasks/position_retrieval.h"

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tasks/token_task.h"

namespace graft {
namespace {

/// An example is right, at the level of the string, if the answer is: accuracy at the first of the two scored
/// positions. The end token is part of the loss alone; its accuracy, at the second, is 1 soon and says nothing about
/// retrieval.
class PositionRetrievalTask final : public TokenTask<PositionRetrieval> {
 public:
  using TokenTask::TokenTask;
  [[nodiscard]] std::vector<std::int64_t> answer_points() const override { return {0}; }
  [[nodiscard]] std::string description() const override {
    return fmt::format("position retrieval: where in a permutation of {} symbols is one of them, query as a {}",
                       law().length, law().prefix ? "prefix" : "suffix");
  }
  [[nodiscard]] std::string token_name(std::int32_t id) const override {
    const std::int32_t position = id - kFirstSymbol - law().length;
    return position < 0 ? TokenTask::token_name(id) : fmt::format("<p{}>", position);
  }
};

const RegisterSettings keys{{
    .table = "task",
    .owner = "position_retrieval",
    .doc = "where in a random permutation of all symbols is one of them?",
    .keys =
        {
            SettingKey::integer("task.length", "symbols of a string, each once").with_default(200).between(1, 4096),
            SettingKey::text("task.layout", "whether the query comes after the string or before it")
                .with_default("suffix")
                .one_of({"suffix", "prefix"}),
        },
    .tags = {"tokens"},
}};

const RegisterTask registered{{"position_retrieval", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<PositionRetrievalTask>(
                                     PositionRetrieval{static_cast<int>(settings.integer("task.length")),
                                                       settings.text("task.layout") == "prefix"},
                                     sample_position_retrieval);
                               }}};

const Register cpu_sampler{sample_position_retrieval, Backend::Cpu, sample_tokens_cpu<PositionRetrieval>};

}  // namespace
}  // namespace graft
