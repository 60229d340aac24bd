#include "tasks/task.h"

#include <map>
#include <utility>

#include "engine/require.h"

namespace graft {
namespace {

std::map<std::string, TaskEntry, std::less<>>& tasks() {
  static std::map<std::string, TaskEntry, std::less<>> entries;
  return entries;
}

}  // namespace

RegisterTask::RegisterTask(TaskEntry entry) {
  std::string name = entry.name;
  tasks().emplace(std::move(name), std::move(entry));
}

std::unique_ptr<Task> make_task(const Settings& settings) {
  const std::string& name = settings.text("task.name");
  const auto found = tasks().find(name);
  require(found != tasks().end(), "task.name: \"{}\" is not a registered task", name);
  return found->second.make(settings);
}

std::unique_ptr<Task> Task::suite(std::string_view name) const {
  std::string known = "standard";
  for (const std::string& other : suites()) known += ", " + other;
  throw ArgumentError(fmt::format("suite: this task has no evaluation called \"{}\", expected one of {}", name, known));
}

std::string Task::truth_text(const Prompt& prompt) const { return named_numbers("w", prompt.truth); }

std::string named_numbers(std::string_view name, std::span<const float> values) {
  std::string text = fmt::format("{} =", name);
  for (const float value : values) text += fmt::format(" {:.3f}", value);
  return text;
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tasks()) names.push_back(name);
  return names;
}

}  // namespace graft
