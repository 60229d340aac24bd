#include "train/config_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace graft {
namespace {

constexpr double kMostSteps = 1e12;
constexpr double kMostSeed = 9007199254740992.0;  // 2^53: exact in every program that reads numbers as doubles

std::vector<SettingKey> common_keys() {
  return {
      SettingKey::text("run.name", "name of the run, the first part of its directory's name")
          .decided_by("the configuration's file name"),
      SettingKey::integer("run.seed", "seed of initialisation, data and dropout; one seed, one run")
          .with_default(0)
          .between(0, kMostSeed)
          .elsewhere_called({"random_seed"}),
      SettingKey::boolean(
          "run.deterministic",
          "results are the same bits run after run; always true, since every kernel of graft is deterministic")
          .with_default(true),

      SettingKey::text("task.name", "the task to learn; its parameters are keys of [task]").required(),

      SettingKey::text("model.preset", "a named architecture; the alternative is model.pattern")
          .elsewhere_called({"name", "architecture", "family", "type"}),
      SettingKey::text("model.pattern", "blocks from input to output, such as \"M(AM)*12\"; instead of model.preset"),
      SettingKey::integer("model.width", "size of the residual stream")
          .with_default(256)
          .between(1, 65536)
          .elsewhere_called({"d_model", "n_embd", "hidden_size", "dim", "embed_dim", "d"}),
      SettingKey::integer("model.layers", "depth as the studies count it: two blocks are one layer where they say so")
          .with_default(12)
          .between(1, 1024)
          .elsewhere_called({"n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth"}),
      SettingKey::integer("model.heads", "attention heads; they share the width evenly")
          .with_default(8)
          .between(1, 1024)
          .elsewhere_called({"n_head", "n_heads", "num_heads", "num_attention_heads"}),
      SettingKey::integer("model.state", "state size of a state-space channel")
          .with_default(16)
          .between(1, 1024)
          .elsewhere_called({"d_state", "state_size", "n_state"}),
      SettingKey::integer("model.mlp_ratio", "inner width of an MLP as a multiple of the width")
          .with_default(4)
          .between(1, 64)
          .elsewhere_called({"expansion", "mlp_multiplier"}),
      SettingKey::boolean("model.positions", "whether a learned table of positions is added to the inputs")
          .decided_by("the preset")
          .elsewhere_called({"positional_encoding", "pos_emb"}),

      SettingKey::text("optimizer.name", "adam, or adamw with decoupled weight decay")
          .with_default("adam")
          .one_of({"adam", "adamw"})
          .elsewhere_called({"type", "algorithm"}),
      SettingKey::number("optimizer.lr", "learning rate, the largest the schedule reaches")
          .with_default(1e-4)
          .above(0)
          .at_most(1e3)
          .elsewhere_called({"learning_rate", "rate", "step_size"}),
      SettingKey::number("optimizer.beta1", "decay of the gradients' running mean")
          .with_default(0.9)
          .at_least(0)
          .below(1)
          .elsewhere_called({"betas", "momentum"}),
      SettingKey::number("optimizer.beta2", "decay of the squared gradients' running mean")
          .with_default(0.999)
          .at_least(0)
          .below(1),
      SettingKey::number("optimizer.eps", "added to the denominator of an update")
          .with_default(1e-8)
          .above(0)
          .at_most(1)
          .elsewhere_called({"epsilon"}),
      SettingKey::number("optimizer.weight_decay", "decoupled weight decay, for adamw")
          .with_default(0.0)
          .between(0, 1e3)
          .elsewhere_called({"decay", "wd", "l2"}),
      SettingKey::number("optimizer.clip", "gradients are scaled down to this global norm; 0 switches it off")
          .with_default(10.0)
          .between(0, 1e30)
          .elsewhere_called({"grad_clip", "gradient_clip", "max_grad_norm", "clip_norm", "gradient_clipping"}),

      SettingKey::text("schedule.name", "learning rate after the warm-up: constant, or falling to schedule.final")
          .with_default("constant")
          .one_of({"constant", "linear", "cosine"})
          .elsewhere_called({"type", "lr_scheduler"}),
      SettingKey::integer("schedule.warmup", "steps over which the learning rate rises from 0")
          .with_default(0)
          .between(0, kMostSteps)
          .in("steps")
          .elsewhere_called({"warmup_steps", "num_warmup_steps"}),
      SettingKey::integer("schedule.total",
                          "step at which a falling schedule arrives; set it if train.steps may change")
          .default_from("train.steps")
          .between(1, kMostSteps)
          .in("steps")
          .elsewhere_called({"total_steps", "decay_steps"}),
      SettingKey::number("schedule.final", "learning rate at schedule.total as a fraction of optimizer.lr")
          .with_default(0.0)
          .between(0, 1)
          .elsewhere_called({"min_lr", "final_lr"}),
      SettingKey::integer("schedule.every", "steps between changes of the learning rate; those of an epoch, perhaps")
          .with_default(1)
          .between(1, kMostSteps)
          .in("steps")
          .elsewhere_called({"interval", "step_size_up", "steps_per_epoch"}),

      SettingKey::integer("train.batch", "prompts in a step, over all ranks")
          .with_default(64)
          .between(1, 1 << 24)
          .in("prompts")
          .elsewhere_called({"batch_size", "bsz"}),
      SettingKey::integer("train.steps", "steps of the run; may be raised when it is resumed")
          .with_default(500000)
          .between(1, kMostSteps)
          .in("steps")
          .elsewhere_called({"max_steps", "iterations", "train_steps", "max_iters", "num_steps"}),
      SettingKey::integer("train.examples",
                          "length of the run in prompts, instead of train.steps; a multiple of the batch")
          .decided_by("train.steps, times the batch")
          .between(1, kMostSteps)
          .in("prompts")
          .elsewhere_called({"samples", "num_examples"}),
      SettingKey::text("train.precision", "arithmetic of the step; fp64 runs on the CPU only")
          .with_default("fp32")
          .one_of({"fp32", "tf32", "bf16", "fp64"})
          .elsewhere_called({"dtype", "mixed_precision"}),
      SettingKey::boolean("train.capture", "record the step once and replay it (a CUDA graph on a GPU)")
          .with_default(true)
          .elsewhere_called({"cuda_graph", "cuda_graphs", "compile"}),
      SettingKey::boolean("train.recompute",
                          "backward computes the activations inside mixers again instead of keeping them: less memory, "
                          "longer steps, the same bits; may change when a run is resumed")
          .with_default(false)
          .elsewhere_called({"activation_checkpointing", "gradient_checkpointing", "checkpoint_activations", "remat"}),
      SettingKey::integer("train.log_every", "steps from one line of metrics.jsonl to the next")
          .with_default(100)
          .between(1, kMostSteps)
          .in("steps")
          .elsewhere_called({"log_interval", "log_steps"}),

      SettingKey::integer("eval.every", "steps from one evaluation to the next; 0: only at the end")
          .with_default(10000)
          .between(0, kMostSteps)
          .in("steps")
          .elsewhere_called({"interval", "eval_interval", "eval_every"}),
      SettingKey::integer("eval.prompts", "prompts of an evaluation, the same each time")
          .with_default(1280)
          .between(1, 1e9)
          .in("prompts")
          .elsewhere_called({"examples", "samples", "num_eval_examples"}),
      SettingKey::integer("eval.batch", "prompts of an evaluation that are computed together")
          .with_default(64)
          .between(1, 1 << 24)
          .in("prompts")
          .elsewhere_called({"batch_size", "eval_batch_size"}),
      SettingKey::integer("eval.bootstrap", "resamples behind the confidence intervals; 0: no intervals")
          .with_default(1000)
          .between(0, 1e6),
      SettingKey::texts("eval.suites", "evaluations of the task besides the standard one, each time, by name")
          .with_defaults(std::initializer_list<const char*>{})
          .elsewhere_called({"strategies"}),
      SettingKey::texts("eval.baselines", "baselines to compare with: \"all\" the task has, or some by name, or []")
          .with_defaults({"all"}),
      SettingKey::integer("eval.baseline_prompts",
                          "prompts that expensive baselines (networks, trees) answer; never more than eval.prompts")
          .with_default(128)
          .between(1, 1e9)
          .in("prompts"),
      SettingKey::integer("eval.baseline_positions",
                          "positions of a prompt, besides the first, that expensive baselines answer at")
          .with_default(16)
          .between(1, 1 << 24)
          .in("positions"),
      SettingKey::number(
          "eval.stop_above",
          "ends the run at the first evaluation whose mean score is at least this (accuracies); in tasks "
          "with an answer of several points, whose share of right answers is, unless eval.stop_from or "
          "_to is given")
          .elsewhere_called({"early_stop", "early_stopping", "target"}),
      SettingKey::number("eval.stop_below",
                         "ends the run at the first evaluation whose mean score is at most this (errors)"),
      SettingKey::integer("eval.stop_from", "first position that the mean of eval.stop_above or _below is over")
          .decided_by("the first position")
          .between(0, 1 << 24),
      SettingKey::integer("eval.stop_to", "last position that the mean of eval.stop_above or _below is over")
          .decided_by("the last position")
          .between(0, 1 << 24),

      SettingKey::integer("checkpoint.every", "steps from one checkpoint to the next; 0: only at the end")
          .with_default(10000)
          .between(0, kMostSteps)
          .in("steps")
          .elsewhere_called({"interval", "save_every", "save_steps"}),
      SettingKey::integer("checkpoint.keep", "newest checkpoints that are kept").with_default(3).between(1, 1e6),
      SettingKey::integer("checkpoint.keep_every", "checkpoints of steps this divides are kept for good; 0: none")
          .with_default(100000)
          .between(0, kMostSteps)
          .in("steps"),

      SettingKey::integer("dist.ranks", "processes that train one model").with_default(1).between(1, 1),
  };
}

std::string group_name(const SettingGroup& group) {
  if (group.owner.empty()) return {};
  return fmt::format("{} = {}", selector_of(group.table), quoted_text(group.owner));
}

}  // namespace

Schema::Schema() : common_(common_keys()), groups_(registered_settings()) {
  for (SettingKey& key : common_) {
    if (selector_of(key.table()) == key.path) key.choices = owners(key.table());
  }
  std::set<std::string> names;
  for (const Declaration& declaration : all()) {
    // Tables nest, so "task.curriculum" makes "task" a table too.
    for (std::string table = declaration.key->table(); !table.empty();) {
      names.insert(table);
      const std::size_t dot = table.rfind('.');
      table = dot == std::string::npos ? std::string() : table.substr(0, dot);
    }
  }
  tables_.assign(names.begin(), names.end());
}

std::vector<Schema::Declaration> Schema::declarations(std::string_view path) const {
  std::vector<Declaration> list;
  for (const SettingKey& key : common_) {
    if (key.path == path) list.push_back({&key, nullptr});
  }
  for (const SettingGroup& group : groups_) {
    for (const SettingKey& key : group.keys) {
      if (key.path == path) list.push_back({&key, &group});
    }
  }
  return list;
}

std::vector<Schema::Declaration> Schema::all() const {
  std::vector<Declaration> list;
  for (const SettingKey& key : common_) list.push_back({&key, nullptr});
  for (const SettingGroup& group : groups_) {
    for (const SettingKey& key : group.keys) list.push_back({&key, &group});
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const Declaration& a, const Declaration& b) { return a.key->path < b.key->path; });
  return list;
}

bool Schema::is_table(std::string_view path) const {
  return std::binary_search(tables_.begin(), tables_.end(), path, std::less<>());
}

std::vector<std::string> Schema::owners(std::string_view table) const {
  std::vector<std::string> names;
  for (const SettingKey& key : common_) {
    if (key.path == selector_of(table)) names = key.choices;
  }
  for (const SettingGroup& group : groups_) {
    if (group.table == table && !group.owner.empty() &&
        std::find(names.begin(), names.end(), group.owner) == names.end()) {
      names.push_back(group.owner);
    }
  }
  return names;
}

std::vector<Schema::Declaration> Schema::active(const std::vector<const SettingGroup*>& groups) const {
  std::map<std::string_view, Declaration> by_path;
  for (const SettingKey& key : common_) by_path[key.path] = {&key, nullptr};
  for (const SettingGroup* group : groups) {
    for (const SettingKey& key : group->keys) by_path[key.path] = {&key, group};
  }
  std::vector<Declaration> list;
  list.reserve(by_path.size());
  for (const auto& [path, declaration] : by_path) list.push_back(declaration);
  return list;
}

std::vector<KeyCandidate> Schema::candidates(const std::vector<Declaration>& active) const {
  std::map<std::string, KeyCandidate> by_path;
  const auto add = [&](const Declaration& declaration, bool legal) {
    KeyCandidate& candidate = by_path[declaration.key->path];
    candidate.path = declaration.key->path;
    candidate.active = legal;
    candidate.aliases.insert(candidate.aliases.end(), declaration.key->aliases.begin(), declaration.key->aliases.end());
  };
  for (const Declaration& declaration : all()) add(declaration, false);
  for (const Declaration& declaration : active) add(declaration, true);
  std::vector<KeyCandidate> list;
  list.reserve(by_path.size());
  for (auto& [path, candidate] : by_path) list.push_back(std::move(candidate));
  return list;
}

void check_common(const Settings& settings, SettingMistakes& mistakes) {
  if (!settings.boolean("run.deterministic")) {
    mistakes.add({"run.deterministic"}, "got false; graft has no non-deterministic kernels, leave it true");
  }

  const std::string& optimizer = settings.text("optimizer.name");
  const double decay = settings.number("optimizer.weight_decay");
  if (optimizer == "adam" && decay != 0) {
    mistakes.add({"optimizer.weight_decay", "optimizer.name"},
                 fmt::format("{} has no effect with optimizer.name = \"adam\"; use \"adamw\", or 0", decay));
  }

  // Smaller ones are rounded to 0 in the update, which divides by it where a gradient has always been 0.
  constexpr auto kLeastEps = static_cast<double>(std::numeric_limits<float>::min());
  const double eps = settings.number("optimizer.eps");
  if (eps < kLeastEps && settings.text("train.precision") != "fp64") {
    mistakes.add({"optimizer.eps", "train.precision"},
                 fmt::format("got {}, expected at least {:.3g}, the least normal number of float32; only "
                             "train.precision = \"fp64\" has smaller ones",
                             eps, kLeastEps));
  }

  const std::int64_t warmup = settings.integer("schedule.warmup");
  const std::int64_t total = settings.integer("schedule.total");
  if (settings.text("schedule.name") != "constant" && warmup > total) {
    mistakes.add(
        {settings.given("schedule.total") || settings.given("schedule.warmup") ? "schedule.warmup" : "train.steps",
         "schedule.total", "train.steps"},
        fmt::format("{} steps are more than schedule.total = {}{}", warmup, total,
                    settings.given("schedule.total") ? "" : ", which comes from train.steps"));
  }

  const std::int64_t every = settings.integer("schedule.every");
  if (every != 1 && settings.text("schedule.name") == "constant") {
    mistakes.add(
        {"schedule.every", "schedule.name"},
        fmt::format("{} has no effect with schedule.name = \"constant\"; leave it out, or let the learning rate "
                    "fall",
                    every));
  }

  const std::int64_t prompts = settings.integer("eval.prompts");
  const std::int64_t batch = settings.integer("eval.batch");
  if (prompts % batch != 0) {
    const std::int64_t below = prompts / batch * batch;
    mistakes.add({"eval.prompts", "eval.batch"},
                 fmt::format("{} is not a multiple of eval.batch = {}; nearest that are: {}{}", prompts, batch,
                             below > 0 ? fmt::format("{}, ", below) : "", below + batch));
  }

  const std::vector<std::string>& baselines = settings.texts("eval.baselines");
  if (baselines.size() > 1 && std::find(baselines.begin(), baselines.end(), "all") != baselines.end()) {
    mistakes.add({"eval.baselines"}, "got \"all\" together with other names; leave one or the other");
  }
}

std::string explain_key(const Schema& schema, std::string_view path) {
  std::string text;
  for (const Schema::Declaration& declaration : schema.declarations(path)) {
    const SettingKey& key = *declaration.key;
    if (!text.empty()) text += "\n";
    text += key.path;
    if (declaration.group != nullptr && !declaration.group->owner.empty()) {
      text += fmt::format("  (with {})", group_name(*declaration.group));
    }
    text += fmt::format("\n  {}\n\n  takes {}; {}\n", key.doc, key.expected(), key.default_text());
    if (!key.unit.empty()) text += fmt::format("  counted in {}\n", key.unit);
    if (!key.condition_path.empty()) {
      text += fmt::format("  counts only with {} = {}\n", key.condition_path, quoted_text(key.condition_value));
    }
    if (!key.aliases.empty()) text += fmt::format("  others call it {}\n", fmt::join(key.aliases, ", "));
    std::string example = toml_text(key.fallback);
    if (example.empty() && !key.choices.empty()) example = quoted_text(key.choices.front());
    if (example.empty()) continue;
    text += fmt::format("\n  [{}]\n  {} = {}\n", key.table(), key.name(), example);
    if (key.kind != SettingKind::StringArray && key.kind != SettingKind::NumberArray &&
        key.kind != SettingKind::IntegerArray) {
      text += fmt::format("\n  or on the command line: -o {}={}\n", key.path,
                          key.kind == SettingKind::String ? example.substr(1, example.size() - 2) : example);
    }
  }
  return text;
}

}  // namespace graft
