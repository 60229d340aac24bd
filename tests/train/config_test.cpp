#include "train/config.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/curriculum_settings.h"
#include "tests/support/temporary_directory.h"
#include "train/cmd_config.h"
#include "train/config_file.h"
#include "train/config_schema.h"
#include "train/run_directory.h"
#include "train/run_name.h"
#include "train/run_record.h"
#include "train/suggest.h"

namespace graft {
namespace {

using test::TemporaryDirectory;
using test::write_contents;

// An owner of each kind that exists only here, declared the way tasks and presets declare theirs.
const RegisterSettings tree_task{{
    .table = "task",
    .owner = "settings_test_tree",
    .doc = "a task of this test",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "dimension").with_default(4).between(1, 64),
            SettingKey::integer("task.points", "points").with_default(16).between(1, 128),
            SettingKey::integer("task.test_depth", "depth of the tree").with_default(3).between(1, 8),
            SettingKey::numbers("task.levels", "a list of numbers").with_defaults({0.5, 1.0}).between(0, 1),
            SettingKey::text("task.label", "any text").with_default("none"),
            SettingKey::integers("task.sizes", "a list of integers").with_defaults({1, 2}).at_least(1),
            SettingKey::texts("eval.baselines", "baselines").with_defaults({"all"}).one_of({"all", "zero", "greedy"}),
        },
        {.dims_start = 2, .points_start = 4}),
    .checks = {check_curriculum,
               [](const Settings& settings, SettingMistakes& mistakes) {
                 if (settings.integer("task.test_depth") > settings.integer("task.dim")) {
                   mistakes.add({"task.test_depth", "task.dim"}, "deeper than there are dimensions");
                 }
               }},
}};
const RegisterSettings ssm_preset{{
    .table = "model",
    .owner = "settings_test_ssm",
    .doc = "a preset of this test",
    .keys = {SettingKey::text("model.ssm_kind", "which one").with_default("mamba").one_of({"mamba", "mamba2"}),
             SettingKey::boolean("model.positions", "as the preset has it").with_default(false)},
}};

constexpr const char* kMinimal = R"([task]
name = "linear_regression"
[model]
preset = "transformer"
)";

std::filesystem::path source_root() { return GRAFT_SOURCE_DIR; }

/// The message with which `text` is refused; empty if it is not.
std::string refusal(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    static_cast<void>(parse_config(text, "x.toml", overrides));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

std::string refusal_of_file(const std::filesystem::path& path) {
  try {
    static_cast<void>(load_config(path.string()));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::size_t mistakes_in(const std::string& message) {
  std::size_t count = 0;
  for (std::size_t at = message.find('\n'); at != std::string::npos; at = message.find('\n', at + 1)) {
    const std::size_t begin = message.rfind('\n', at - 1) == std::string::npos ? 0 : message.rfind('\n', at - 1) + 1;
    const std::string line = message.substr(begin, at - begin);
    if (line.starts_with("x.toml:") || line.starts_with("-o ")) ++count;
  }
  return count;
}

void check_refused(std::string_view text, std::string_view expected, const std::vector<std::string>& overrides = {}) {
  const std::string message = refusal(text, overrides);
  CAPTURE(text);
  CAPTURE(expected);
  CAPTURE(message);
  CHECK(contains(message, expected));
}

TEST_CASE("config: what is not given has its default") {
  const RunConfig config = parse_config(kMinimal, "dir/some run.toml");
  CHECK(config.run.name == "some_run");
  CHECK(config.run.seed == 0);
  CHECK(config.run.deterministic);
  CHECK(config.task == "linear_regression");
  CHECK(config.settings.integer("task.dim") == 20);
  CHECK(config.settings.integer("task.points") == 41);
  CHECK(config.model.preset == "transformer");
  CHECK(config.model.pattern.empty());
  CHECK(config.model.width == 256);
  CHECK(config.optimizer.name == "adam");
  CHECK(config.optimizer.lr == 1e-4);
  CHECK(config.optimizer.clip == 10);
  CHECK(config.schedule.total == config.train.steps);
  CHECK(config.train.batch == 64);
  CHECK(config.train.steps == 500000);
  CHECK(config.train.precision == Precision::Fp32);
  CHECK(config.train.capture);
  CHECK_FALSE(config.train.recompute);
  CHECK(config.eval.baselines == std::vector<std::string>{"all"});
  CHECK(config.checkpoint.keep_every == 100000);
  CHECK(config.text == kMinimal);
  CHECK(config.settings.origin("task.name").str() == "dir/some run.toml:2:8");
  CHECK(config.settings.origin("task.dim").str() == "preset");
  CHECK(config.settings.origin("train.batch").str() == "default");
}

TEST_CASE("config: the files that come with the project are right") {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source_root() / "configs")) {
    if (entry.path().extension() != ".toml" || contains(test::contents(entry.path()), "[sweep]")) continue;
    CAPTURE(entry.path().string());
    CHECK(refusal_of_file(entry.path()).empty());
    ++files;
  }
  CHECK(files >= 5);
  const RunConfig quickstart = load_config((source_root() / "configs/quickstart.toml").string());
  CHECK(quickstart.run.name == "quickstart");
  CHECK_FALSE(curriculum_of(quickstart.settings).enabled);
  CHECK(curriculum_of(quickstart.settings).points.at(0) == 8);

  const RunConfig paper = load_config((source_root() / "configs/icl/linear_regression.toml").string());
  const Curriculum curriculum = curriculum_of(paper.settings);
  CHECK(curriculum.dims.at(0) == 5);
  CHECK(curriculum.dims.at(29999) == 19);
  CHECK(curriculum.dims.at(30000) == 20);
  CHECK(curriculum.points.at(29999) == 39);
  CHECK(curriculum.points.at(30000) == 41);
  CHECK(curriculum.points.at(499999) == 41);
}

TEST_CASE("config: every mistake of a file is reported at once, with its place") {
  const std::string message = refusal(R"([run]
seed = -1
[task]
name = "linear_regression"
depht = 3
[model]
preset = "transformre"
width = "wide"
[optimizer]
lrr = 1e-4
  beta1 = 1.0
[trian]
batch = 0
[train]
steps = 1e5
)",
                                      {"optimizer.clip=abc", "eval.evrey=3"});
  CAPTURE(message);
  CHECK(contains(message,
                 "x.toml:2:8: run.seed: got -1, expected an integer in [0, 2^53]\n  2 | seed = -1\n    |        ^"));
  CHECK(contains(message, "x.toml:5:1: task.depht: unknown key"));
  CHECK(contains(message, "x.toml:7:10: model.preset: got \"transformre\", expected one of "));
  CHECK(contains(message, "did you mean `transformer`?"));
  CHECK(contains(message, "x.toml:8:9: model.width: got the text \"wide\", expected an integer in [1, 65536]"));
  CHECK(contains(message, "x.toml:10:1: optimizer.lrr: unknown key; did you mean `optimizer.lr`?"));
  CHECK(contains(message,
                 "x.toml:11:11: optimizer.beta1: got 1.0, expected a number in [0, 1)\n"
                 " 11 |   beta1 = 1.0\n    |           ^") == false);
  CHECK(contains(message, "  11 |   beta1 = 1.0\n     |           ^"));
  CHECK(contains(message, "x.toml:12:2: trian: unknown table; did you mean `train`?"));
  CHECK(contains(message, "x.toml:13:9: train.batch: got 0, expected"));  // the table that was meant
  CHECK(contains(message, "train.steps: got the number 100000.0, expected an integer in [1, 10^12]; write 100000"));
  CHECK(contains(message, "-o optimizer.clip=abc: optimizer.clip: got the text \"abc\", expected a number"));
  CHECK(contains(message, "-o eval.evrey=3: eval.evrey: unknown key; did you mean `eval.every`?"));
  CHECK(mistakes_in(message) == 11);
  CHECK(message.ends_with("x.toml: 11 mistakes; `graft config explain KEY` says what a key takes"));
}

TEST_CASE("config: messages for single mistakes") {
  const std::string minimal = kMinimal;
  check_refused("# nothing\n", "x.toml: task.name: missing, expected one of ");
  check_refused("# nothing\n", "x.toml: model.preset: missing, expected one of ");
  check_refused(minimal + "[optimizer]\nlr = \"1e-4\"\n", "write 1e-4 without quotes");
  check_refused(minimal + "[optimizer]\nlr = nan\n", "got nan, expected a finite value: a number in (0, 1000]");
  check_refused(minimal + "[optimizer]\nlr = inf\n", "got inf, expected a finite value");
  check_refused(minimal + "[optimizer]\nlr = 0\n", "optimizer.lr: got 0.0, expected a number in (0, 1000]");
  check_refused(minimal + "[optimizer]\nlr = 2024-01-01\n", "got a date, expected a number");
  check_refused(minimal + "[optimizer]\nlr = [1.0]\n", "got an array of numbers, expected a number");
  check_refused(minimal + "[optimizer.lr]\nx = 1\n", "optimizer.lr: got a table, expected a number");
  check_refused(minimal + "[[train]]\nsteps = 1\n", "train: got an array of tables, expected a table: [train]");
  check_refused("task = 3\n", "x.toml:1:8: task: got the integer 3, expected a table: [task]");
  check_refused(minimal + "[train]\ncapture = 1\n", "train.capture: got the integer 1, expected true or false");
  check_refused(minimal + "[train]\ncapture = \"true\"\n", "write true without quotes");
  check_refused(minimal + "[train]\nsteps = 9223372036854775807\n", "got 9223372036854775807, expected an integer in");
  check_refused(minimal + "[train]\nsteps = 92233720368547758070\n", "x.toml:6:");
  check_refused(minimal + "[run]\nname = \"\"\n", "run.name: got an empty text");
  check_refused(minimal + "[run]\nname = \"a/b\"\n", "run.name: got \"a/b\", expected letters");
  check_refused(minimal + "[run]\nname = \"..\"\n", "not beginning with \".\"");
  check_refused(minimal + "[run]\nname = \"" + std::string(101, 'a') + "\"\n", "got 101 bytes, expected at most 100");
  check_refused(minimal + "[eval]\nbaselines = [1]\n", "got an array of integers, expected an array of texts");
  check_refused(minimal + "[eval]\nbaselines = [\"\"]\n", "got an empty text");
  check_refused(minimal + "[eval]\nbaselines = [\"all\", 1]\n", "got an array of mixed values");
  check_refused(minimal + "[curriculum]\nenabled = true\n", "unknown table; did you mean `task.curriculum`?");
  check_refused(minimal + "[nonsense]\na = 1\n", "unknown table; the tables are [checkpoint], [dist], ");
  check_refused(minimal + "[optimizer]\nxyzzy = 1\n", "unknown key; [optimizer] has beta1, beta2, clip");
  check_refused("lr = 1e-4\n" + minimal, "x.toml:1:1: lr: unknown key; did you mean `optimizer.lr`?");
  check_refused("\"optimizer.lr\" = 1e-4\n" + minimal, "did you mean `optimizer.lr`?");
  check_refused(minimal + "[train]\nlr = 1e-4\n", "train.lr: unknown key; did you mean `optimizer.lr`?");
  check_refused(minimal + "[train]\nlearning_rate = 1e-4\n", "did you mean `optimizer.lr`?");
  check_refused(minimal + "d_model = 64\n", "model.d_model: unknown key; did you mean `model.width`?");
  check_refused("[task]\nname = \"linear_regresion\"\n[model]\npreset = \"transformer\"\n",
                "did you mean `linear_regression`?");
}

TEST_CASE("config: mistakes of syntax name the key and the remedy, and do not hide others") {
  const std::string message = refusal(R"([task]
name = linear_regression
[model]
preset = "transformer"
width = 64
width = 65
[optimizer]
lr = .5
clip =
[train]
capture = True
steps = "many"
)");
  CAPTURE(message);
  CHECK(contains(message, "x.toml:2:8: task.name: got linear_regression without quotes"));
  CHECK(contains(message, "text is written \"linear_regression\""));
  CHECK(contains(message, "x.toml:6:1: model.width: given a second time, expected once; the first is on line 5"));
  CHECK(contains(message, "x.toml:8:"));
  CHECK(contains(message, "optimizer.clip: got nothing after \"=\""));
  CHECK(contains(message, "x.toml:11:11: train.capture: got True, expected a value; did you mean `true`?"));
  CHECK(contains(message, "train.steps: got the text \"many\""));
  CHECK_FALSE(contains(message, "missing"));  // task.name is there, only not readable
  CHECK(mistakes_in(message) == 6);

  check_refused("[task\nname = \"linear_regression\"\n", "x.toml:1:");
  check_refused("[run]\n[run]\n", "x.toml:2:");
  check_refused("[run]\nname = \"abc\n", "x.toml:2:");
  check_refused("[eval]\nbaselines = [\"all\"\n[run]\n", "x.toml:3:");
  check_refused("[run]\nname = '''abc\n", "x.toml:");
  check_refused("=\n", "x.toml:1:");
  check_refused("a.b.c", "x.toml:1:");
  for (const char* header : {"[=", "[[.a]]", "[#]", "[", "[]", "[ [a]]", "[[ \t\xc3\xa4]]", "[a.]", "[[]]", "[,]"}) {
    check_refused(header, "x.toml:1:");
  }
}

TEST_CASE("config: conditions between keys name both") {
  const std::string minimal = kMinimal;
  check_refused(minimal + "heads = 7\n",
                "x.toml:5:9: model.heads: 7 does not divide model.width = 256; nearest that do: 4, 8");
  check_refused(minimal + "width = 60\nheads = 7\n", "nearest that do: 6, 10");
  check_refused(minimal + "width = 4\nheads = 8\n", "nearest that do: 4\n");
  check_refused(minimal + "width = 100\n", "x.toml:5:9: model.heads: 8 does not divide model.width = 100");
  check_refused(minimal + "[eval]\nprompts = 100\n",
                "100 is not a multiple of eval.batch = 64; nearest that are: 64, 128");
  check_refused(minimal + "[eval]\nprompts = 10\n", "nearest that are: 64\n");
  check_refused(minimal + "[optimizer]\nweight_decay = 0.1\n", "0.1 has no effect with optimizer.name = \"adam\"");
  check_refused(minimal + "[optimizer]\neps = 1e-46\n", "optimizer.eps: got 1e-46, expected at least 1.18e-38");
  CHECK(parse_config(minimal + "[optimizer]\neps = 1.2e-38\n", "x.toml").optimizer.eps == 1.2e-38);
  CHECK(parse_config(minimal + "[optimizer]\neps = 1e-46\n[train]\nprecision = \"fp64\"\n", "x.toml").optimizer.eps ==
        1e-46);
  check_refused(minimal + "[schedule]\nname = \"cosine\"\nwarmup = 20\n[train]\nsteps = 10\n",
                "schedule.warmup: 20 steps are more than schedule.total = 10, which comes from train.steps");
  check_refused(minimal + "[schedule]\nevery = 100\n",
                "x.toml:6:9: schedule.every: 100 has no effect with schedule.name = \"constant\"");
  check_refused(minimal + "[eval]\nbaselines = [\"all\", \"zero\"]\n", "together with other names");
  check_refused("[task]\nname = \"linear_regression\"\npoints = 8\n[model]\npreset = \"transformer\"\n",
                "task.curriculum.points_start: got 11, expected at most task.curriculum.points_end = 8; set it, or "
                "switch the curriculum off");
  check_refused(
      "[task]\nname = \"linear_regression\"\n[task.curriculum]\ndims_end = 30\n[model]\npreset = \"transformer\"\n",
      "x.toml:4:12: task.curriculum.dims_end: got 30, expected at most task.dim = 20");
  check_refused(minimal + "pattern = \"(AF)*3\"\n", "given together with model.preset, expected one of the two");
  check_refused("[task]\nname = \"linear_regression\"\n", "model.preset: missing");
  check_refused(minimal + "[run]\ndeterministic = false\n", "x.toml:6:17: run.deterministic: got false; graft has no");
  // A refused value is reported once, and conditions on it are not.
  CHECK(mistakes_in(refusal(minimal + "heads = 0\n")) == 1);
  CHECK(refusal(minimal + "[schedule]\nwarmup = 20\n[train]\nsteps = 10\n").empty());  // constant: nothing to arrive at
}

TEST_CASE("config: models that cannot be built or trained are refused where they are written") {
  const std::string task = "[task]\nname = \"linear_regression\"\n[model]\n";
  check_refused(task + "pattern = \"X(A\"\n",
                "x.toml:4:11: model.pattern: pattern \"X(A\", character 4: the end, expected");
  check_refused(task + "pattern = \"(AQ)*2\"\n", "x.toml:4:11: model.pattern: pattern: no mixer is called \"Q\"");
  check_refused(
      task + "pattern = \"A\"\nwidth = 512\nheads = 1\n",
      "x.toml:6:9: model.heads: 1 makes heads 512 wide with model.width = 512, expected at most 256; nearest that "
      "fit: 2");
  check_refused(task + "pattern = \"A\"\nwidth = 100\n", "model.heads: 8 does not divide model.width = 100");
  check_refused(task + "pattern = \"F\"\nwidth = 16384\n", "x.toml:5:9: model.width: got 16384, expected at most 8192");
  check_refused(task + "pattern = \"M\"\nstate = 512\n", "x.toml:5:9: model.state: got 512, expected at most 256");
  for (const char* preset : {"s4", "s4_mamba"}) {
    const std::string text = task + "preset = \"" + preset + "\"\n";
    const std::string expected = ", expected an even number in [2, 128]: an S4D layer's modes come in conjugate pairs";
    check_refused(text + "state = 15\n", "x.toml:5:9: model.state: got 15" + expected);
    check_refused(text, "-o model.state=15: model.state: got 15" + expected, {"model.state=15"});
    check_refused(text + "state = 130\n", "x.toml:5:9: model.state: got 130" + expected);
    CHECK(refusal(text + "state = 128\n").empty());
  }
  check_refused(task + "preset = \"transformer\"\nlayers = 1000\n", "more than 1000 layers");
  check_refused(task + "preset = \"transformer\"\nposition_rows = 81\n",
                "x.toml:5:17: model.position_rows: got 81, expected at least the 82 tokens of the longest prompt");
  for (const char* fine :
       {"pattern = \"F\"\nwidth = 8192\nheads = 7\n", "preset = \"mamba\"\nwidth = 100\n",
        "preset = \"transformer\"\nposition_rows = 82\n", "preset = \"transformer_nope\"\nposition_rows = 1\n",
        "pattern = \"A\"\nwidth = 512\nheads = 2\n"}) {
    CAPTURE(fine);
    CHECK(refusal(task + fine) == "");
  }
}

TEST_CASE("config: every file name gives a run a name that is accepted") {
  for (const std::string& stem :
       {std::string("a+b=c"), std::string(".hidden"), std::string("-x"), std::string("r\xc3\xa9sum\xc3\xa9 2"),
        std::string(300, 'n'), "." + std::string(99, 'n'), std::string("..")}) {
    CAPTURE(stem);
    const RunConfig config = parse_config(kMinimal, "folder/" + stem + ".toml");
    CHECK(is_run_name(config.run.name));
    CHECK(parse_config(resolved_toml(config), "x.toml").run.name == config.run.name);
    const RunOptions options = run_options(config);
    CHECK(RunDirectory::locate(options).filename() == config.run.name + "-" + options.config_hash);
  }
  check_refused(kMinimal, "run.name: got \"-x\", expected letters", {"run.name=-x"});
}

TEST_CASE("config: keys of an owner are legal with it only") {
  const std::string tree = "[task]\nname = \"settings_test_tree\"\n";
  const std::string model = "[model]\npreset = \"transformer\"\n";
  const RunConfig config = parse_config(tree + "test_depth = 2\n" + model, "x.toml");
  CHECK(config.settings.integer("task.test_depth") == 2);
  CHECK(config.settings.integer("task.dim") == 4);  // its own default for a key other tasks have too
  CHECK(config.settings.numbers("task.levels") == std::vector<double>{0.5, 1.0});
  CHECK(config.settings.integers("task.sizes") == std::vector<std::int64_t>{1, 2});
  CHECK(curriculum_of(config.settings).points.at(0) == 4);
  const RunConfig lists = parse_config(tree + "levels = [0, 1]\nsizes = []\n" + model, "x.toml");
  CHECK(lists.settings.numbers("task.levels") == std::vector<double>{0, 1});  // integers widen
  CHECK(lists.settings.integers("task.sizes").empty());

  check_refused(tree + "levels = [0.5, 2]\n" + model, "task.levels: got 2.0, expected an array of numbers in [0, 1]");
  check_refused(tree + "sizes = [1.5]\n" + model, "got an array of numbers, expected an array of integers >= 1");
  check_refused(tree + "dim = 65\n" + model, "task.dim: got 65, expected an integer in [1, 64]");
  check_refused(tree + "test_depth = 5\n" + model, "x.toml:3:14: task.test_depth: deeper than there are dimensions");
  check_refused(tree + model + "[eval]\nbaselines = [\"greddy\"]\n", "did you mean `greedy`?");
  check_refused("[task]\nname = \"linear_regression\"\ntest_depth = 2\n" + model,
                "x.toml:3:1: task.test_depth: belongs to task.name \"settings_test_tree\", but task.name is "
                "\"linear_regression\"");
  CHECK(mistakes_in(refusal("[task]\nname = \"nobody\"\ntest_depth = 2\n" + model)) == 1);

  const std::string ssm = tree + "[model]\npreset = \"settings_test_ssm\"\n";
  const RunConfig preset = parse_config(ssm + "width = 100\n", "x.toml");  // heads are unused: they need not divide
  CHECK(preset.model.positions == false);
  CHECK(preset.settings.text("model.ssm_kind") == "mamba");
  CHECK(preset.settings.origin("model.ssm_kind").str() == "preset");
  check_refused(tree + model + "ssm_kind = \"mamba\"\n", "belongs to model.preset \"settings_test_ssm\"");
  check_refused(tree + "[model]\npattern = \"M*3\"\nssm_kind = \"mamba\"\n", "but model.pattern is given");
  CHECK_FALSE(parse_config(tree + "[model]\npattern = \"M*3\"\nwidth = 100\n", "x.toml").model.positions.has_value());
}

TEST_CASE("config: -o overrides the file") {
  const auto with = [](const std::vector<std::string>& overrides) {
    return parse_config(kMinimal, "x.toml", overrides);
  };
  CHECK(with({"optimizer.lr=3e-4"}).optimizer.lr == 3e-4);
  CHECK(with({"optimizer.lr=1"}).optimizer.lr == 1);
  CHECK(with({" optimizer.lr = 3e-4 "}).optimizer.lr == 3e-4);
  CHECK(with({"optimizer.lr=1e-3", "optimizer.lr=1e-2"}).optimizer.lr == 1e-2);
  CHECK(with({"model.preset=settings_test_ssm"}).model.preset == "settings_test_ssm");
  CHECK(with({"model.preset=\"settings_test_ssm\""}).model.preset == "settings_test_ssm");
  CHECK(with({"run.name=123"}).run.name == "123");
  CHECK(with({"run.name=true"}).run.name == "true");
  CHECK(with({"run.name=1e5"}).run.name == "1e5");
  CHECK(with({"train.capture=false"}).train.capture == false);
  CHECK(with({"train.recompute=true"}).train.recompute);
  CHECK(with({"train.precision=bf16"}).train.precision == Precision::Bf16);
  CHECK(with({"eval.baselines=zero,averaging"}).eval.baselines == std::vector<std::string>{"zero", "averaging"});
  CHECK(with({"eval.baselines=[]"}).eval.baselines.empty());
  CHECK(with({"task={name = \"settings_test_tree\", test_depth = 1}"}).settings.integer("task.test_depth") == 1);
  CHECK_FALSE(curriculum_of(with({"task.curriculum.enabled=false"}).settings).enabled);
  CHECK(with({"optimizer.lr=3e-4"}).settings.origin("optimizer.lr").str() == "-o optimizer.lr=3e-4");
  // One of two alternatives replaces the other one of the file.
  CHECK(with({"model.pattern=(AF)*3"}).model.pattern == "(AF)*3");
  CHECK(with({"model.pattern=(AF)*3"}).model.preset.empty());
  CHECK(with({"train.examples=640"}).train.steps == 10);
  CHECK(with({"train.examples=640"}).schedule.total == 10);
  check_refused(kMinimal, "train.examples: 65 is not a multiple of train.batch = 64; nearest that are: 64, 128",
                {"train.examples=65"});
  check_refused(kMinimal, "given together with train.steps", {"train.examples=64", "train.steps=1"});

  check_refused(kMinimal, "-o optimizer.lr: got no \"=\", expected table.key=value", {"optimizer.lr"});
  const std::string several = refusal(kMinimal, {"optimizer.lr", "=3", "model.layrs=6"});
  CHECK(mistakes_in(several) == 3);
  CHECK(contains(several, "did you mean `model.layers`?"));
  check_refused(kMinimal, "got no key before", {"=3"});
  check_refused(kMinimal, "expected a key of letters", {"optimizer..lr=3"});
  check_refused(kMinimal, "expected a key of letters", {"[optimizer]=3"});
  check_refused(kMinimal, "got a line break", {"run.name=a\nb"});
  check_refused(kMinimal, "got nothing, expected a number", {"optimizer.lr="});
  check_refused(kMinimal, "run.name: got an empty text", {"run.name="});
  check_refused(kMinimal, "got the text \"1 2\", expected a number", {"optimizer.lr=1 2"});
  check_refused(kMinimal, "got the text \"1#2\", expected a number", {"optimizer.lr=1#2"});
  check_refused(kMinimal, "expected a table: [optimizer]", {"optimizer=3"});
  check_refused(kMinimal, "got the number 1000.0, expected an integer in [1, 10^12]; write 1000", {"train.steps=1e3"});
  check_refused(kMinimal, "unknown key; did you mean `train.steps`?", {"steps=1000"});
  check_refused(kMinimal, "got the text", {"optimizer.lr=" + std::string(2000, '[')});
}

TEST_CASE("config: files that are none") {
  const TemporaryDirectory directory;
  write_contents(directory / "quickstart.toml", kMinimal);
  CHECK(contains(refusal_of_file(directory / "quickstrat.toml"), "no such file; did you mean `"));
  CHECK(contains(refusal_of_file(directory / "quickstart"), "quickstart.toml`?"));
  CHECK(refusal_of_file(directory / "something_else.toml").ends_with("no such file"));
  CHECK(refusal_of_file(directory.path() / "none" / "a.toml").ends_with("no such file"));
  CHECK(contains(refusal_of_file(directory / "quickstart.toml/a.toml"), "no such file"));
  CHECK(contains(refusal_of_file(directory.path()), "is a directory"));
  CHECK(contains(refusal_of_file(""), "empty file name"));
  CHECK(contains(refusal_of_file("/dev/null"), "not a regular file"));

  write_contents(directory / "empty.toml", "");
  CHECK(contains(refusal_of_file(directory / "empty.toml"), "is empty"));
  write_contents(directory / "large.toml", kMinimal + std::string(33 << 10, '#'));
  CHECK(contains(refusal_of_file(directory / "large.toml"), "larger than 32 KiB"));

  const std::string pipe = directory / "pipe.toml";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(contains(refusal_of_file(pipe), "not a regular file"));  // and did not wait for a writer

  write_contents(directory / "secret.toml", kMinimal);
  std::filesystem::permissions(directory / "secret.toml", std::filesystem::perms::none);
  if (::geteuid() != 0)
    CHECK(contains(refusal_of_file(directory / "secret.toml"), "cannot be read: Permission denied"));
}

TEST_CASE("config: encodings") {
  const std::string minimal = kMinimal;
  std::string crlf;
  for (const char c : minimal + "lr = 1\n") crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  const std::string message = refusal(crlf);
  CAPTURE(message);
  CHECK(contains(message, "  5 | lr = 1\n    | ^\n"));
  CHECK(refusal("\xef\xbb\xbf" + minimal).empty());
  check_refused("\xef\xbb\xbf[optimzer]\n" + minimal, "x.toml:1:2: optimzer: unknown table");
  check_refused("\xff\xfe[\0", "got the byte 0xff, expected UTF-8; the file seems to be UTF-16");
  check_refused("# \xc3\xa4\n# \xe4\n", "x.toml:2:3: got the byte 0xe4, expected UTF-8");
  check_refused(std::string_view("a = 1\0", 6), "got a zero byte, expected text");
  for (const char* bad : {"\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80"}) {
    CHECK_FALSE(is_utf8(bad));
  }
  for (const char* good : {"\xc3\xa4", "\xe2\x82\xac", "\xed\x9f\xbf", "\xf0\x9f\x98\x80"}) CHECK(is_utf8(good));
  // Columns count characters, and nothing that moves a terminal's cursor is echoed.
  check_refused(minimal + "\"\xc3\xa4\xc3\xb6\" = 1\n", "x.toml:5:1: model.\"\xc3\xa4\xc3\xb6\": unknown key");
  CHECK_FALSE(contains(refusal(minimal + "x = \"\\u001b[2J\"\n"), "\x1b"));
  CHECK_FALSE(contains(refusal(minimal + "preset2 = \"\x1b[2J\"\n"), "\x1b"));
}

TEST_CASE("config: hostile files are refused, quickly, and never crash") {
  const std::string minimal = kMinimal;
  const auto repeat = [](std::string_view part, std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += part;
    return text;
  };
  std::string many_keys = minimal;
  for (int i = 0; many_keys.size() < (32 << 10) - 20; ++i) many_keys += fmt::format("widht{} = 1\n", i);
  std::string many_tables;
  for (int i = 0; many_tables.size() < (32 << 10) - 20; ++i) many_tables += fmt::format("[optimizer{}]\n", i);
  std::string many_syntax;
  for (int i = 0; many_syntax.size() < (32 << 10) - 20; ++i) many_syntax += fmt::format("k{} = yes\n", i);
  const std::vector<std::string> hostile = {
      "a = " + repeat("[", 32000),
      "a = " + repeat("{a=", 10000),
      repeat("[", 32000),
      "[" + repeat("a.", 16000) + "a]\n",
      repeat("a.", 16000) + "a = 1\n",
      repeat("\"a\" . ", 5000) + "a = 1\n",
      "a = {" + repeat("a.", 10000) + "a = 1}\n",
      repeat("[[a]]\n", 5000),
      repeat("a = 1\n", 5000),
      repeat("\"", 32000),
      repeat("'''", 10000),
      repeat("\\", 32000),
      repeat("=", 32000),
      repeat("x", 32000) + " = 1\n",
      "[" + repeat("x", 32000) + "]\n",
      minimal + repeat("x", 30000) + " = 1\n",
      minimal + "preset2 = \"" + repeat("y", 30000) + "\"\n",
      "[model]\npreset = \"" + repeat("transformer", 2500) + "\"\n",
      many_keys,
      many_tables,
      many_syntax,
  };
  for (const std::string& text : hostile) {
    CAPTURE(text.substr(0, 40));
    const std::clock_t begin = std::clock();
    const std::string message = refusal(text);
    const double ms = 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    CHECK_FALSE(message.empty());
    CHECK(message.size() < 20000);
    CHECK(ms < 200);  // measured: 6 at most without optimisation; sanitizers need the rest
  }
  check_refused("a = [[[[[[[[[1]]]]]]]]]\n", "x.toml:1:13: got brackets nested deeper than 8");
  check_refused(repeat("a.", 16) + "a = 1\n", "got a key of more than 16 parts");
  check_refused(minimal + repeat("x", 300) + " = 1\n", "xxx...xxx");
  check_refused(minimal + repeat("x", 300) + " = 1\n", "(306 bytes): unknown key");
  CHECK(refusal(minimal + "[run]\nname = \"[[[[[[[[[[\" # [[[[[[[[[[[[ a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a\n")
            .find("nested") == std::string::npos);
}

TEST_CASE("config: random damage never does more than throw ConfigError") {
  const std::string original = test::contents(source_root() / "configs/icl/linear_regression.toml");
  std::mt19937 random(7);
  constexpr char kAlphabet[] = "[]{}=\"'\n\\#.,\0ae1-\xc3\x80 \t\r";
  const std::string_view alphabet(kAlphabet, sizeof(kAlphabet) - 1);  // a zero byte is one of them
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = original;
    for (unsigned edits = 1 + random() % 4; edits > 0; --edits) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 20);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
          break;
      }
    }
    try {
      static_cast<void>(parse_config(text, "x.toml"));
      ++accepted;
    } catch (const ConfigError&) {
    }
  }
  CHECK(accepted > 0);  // damage in comments
  CHECK(accepted < 3000);
}

/// All strings one edit away: a letter lost, added, replaced, or two neighbours swapped.
std::vector<std::string> single_edits(const std::string& word) {
  const std::string_view letters = "abcdefghijklmnopqrstuvwxyz_.0";
  std::vector<std::string> edits;
  for (std::size_t i = 0; i <= word.size(); ++i) {
    for (const char letter : letters) edits.push_back(word.substr(0, i) + letter + word.substr(i));
    if (i == word.size()) break;
    edits.push_back(word.substr(0, i) + word.substr(i + 1));
    for (const char letter : letters) edits.push_back(word.substr(0, i) + letter + word.substr(i + 1));
    if (i + 1 < word.size()) {
      std::string swapped = word;
      std::swap(swapped[i], swapped[i + 1]);
      edits.push_back(std::move(swapped));
    }
  }
  std::sort(edits.begin(), edits.end());
  edits.erase(std::unique(edits.begin(), edits.end()), edits.end());
  return edits;
}

TEST_CASE("suggest: one wrong letter in a key leads to it") {
  const Schema schema;
  const std::vector<KeyCandidate> candidates = schema.candidates({});
  std::vector<std::string> paths;
  for (const KeyCandidate& candidate : candidates) paths.push_back(candidate.path);
  std::size_t right = 0;
  std::size_t all = 0;
  for (const std::string& path : paths) {
    std::size_t key_right = 0;
    std::size_t key_all = 0;
    for (const std::string& typed : single_edits(path)) {
      if (std::find(paths.begin(), paths.end(), typed) != paths.end()) continue;
      ++key_all;
      if (nearest_key(typed, candidates) == path) ++key_right;
    }
    right += key_right;
    all += key_all;
    CAPTURE(path);
    CAPTURE(key_right);
    CAPTURE(key_all);
    CHECK(static_cast<double>(key_right) >= 0.9 * static_cast<double>(key_all));
  }
  MESSAGE(fmt::format("{} of {} single edits of {} keys: {:.2f} %", right, all, paths.size(),
                      100.0 * static_cast<double>(right) / static_cast<double>(all)));
  CHECK(static_cast<double>(right) >= 0.95 * static_cast<double>(all));
}

TEST_CASE("suggest: distances and thresholds") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("abc", "abc") == 0);
  CHECK(edit_distance("abc", "acb") == 1);
  CHECK(edit_distance("ca", "abc") == 3);  // no letter is edited twice
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ABC", "abc") == 0);
  CHECK(edit_distance("kitten", "sitting", 2) == 3);
  CHECK(edit_distance("a", std::string(100, 'b'), 5) == 6);
  CHECK(nearest_name("transformr", {"mamba", "transformer", "transformer_nope"}) == "transformer");
  CHECK(nearest_name("transfomer_nope", {"mamba", "transformer", "transformer_nope"}) == "transformer_nope");
  CHECK(nearest_name("Mamba", {"mamba2", "mamba"}) == "mamba");
  CHECK(nearest_name("xyz", {"mamba", "transformer"}).empty());
  CHECK(nearest_name("", {"a"}).empty());
  CHECK(nearest_name("abc", {}).empty());
  const std::vector<KeyCandidate> keys = Schema().candidates({});
  CHECK(nearest_key("learning_rate", keys) == "optimizer.lr");
  CHECK(nearest_key("train.batch_size", keys) == "train.batch");
  CHECK(nearest_key("eval.batch_size", keys) == "eval.batch");
  CHECK(nearest_key("model.n_layers", keys) == "model.layers");
  CHECK(nearest_key("optimiser.learning_rate", keys) == "optimizer.lr");
  CHECK(nearest_key("optimizer.grad_clip", keys) == "optimizer.clip");
  CHECK(nearest_key("seed", keys) == "run.seed");
  CHECK(nearest_key("curriculum.enabled", keys) == "task.curriculum.enabled");
  CHECK(nearest_key("quux.frobnicate", keys).empty());
}

TEST_CASE("config: the canonical text reads back to itself") {
  const std::vector<std::string> texts = {
      kMinimal,
      "[task]\nname = \"settings_test_tree\"\nlevels = [0.1, 1]\nlabel = \"A\\\"\\\\*3\"\n[model]\npattern = \"A*3\"\n",
      std::string(kMinimal) + "[optimizer]\nlr = 0.1\neps = 1e-30\nbeta1 = 0.30000000000000004\n"};
  for (const std::string& text : texts) {
    const RunConfig config = parse_config(text, "x.toml", {"train.examples=6400"});
    const std::string canonical = resolved_toml(config);
    const RunConfig again = parse_config(canonical, "resolved.toml");
    CHECK(resolved_toml(again) == canonical);
    CHECK(config_hash8(again) == config_hash8(config));
    CHECK(identity_differences(config, again).empty());
    CHECK(again.optimizer.beta1 == config.optimizer.beta1);
    CHECK(again.run.name == "x");
    CHECK(again.model.pattern == config.model.pattern);
  }
  CHECK(toml_text(SettingValue(0.1)) == "0.1");
  CHECK(toml_text(SettingValue(10.0)) == "10.0");
  CHECK(toml_text(SettingValue(1e-8)) == "1e-08");
  CHECK(toml_text(SettingValue(-0.0)) == "0.0");
  CHECK(toml_text(SettingValue(1e22)) == "1e+22");
  CHECK(toml_text(SettingValue(std::string("a\"b\n"))) == "\"a\\\"b\\u000A\"");
  CHECK(toml_text(SettingValue(std::vector<std::int64_t>{1, -2})) == "[1, -2]");
}

TEST_CASE("config: the hash knows what decides a run's numbers") {
  const std::string hash = config_hash8(parse_config(kMinimal, "x.toml"));
  CHECK(hash.size() == 8);
  CHECK(hash.find_first_not_of("0123456789abcdef") == std::string::npos);
  const auto hash_with = [](const std::vector<std::string>& overrides) {
    return config_hash8(parse_config(kMinimal, "other.toml", overrides));
  };
  CHECK(hash_with({}) == hash);
  CHECK(hash_with({"train.batch=64", "optimizer.lr=0.0001"}) == hash);  // a default written out
  for (const char* free : {"run.name=b", "train.steps=7", "train.examples=640", "train.recompute=true", "eval.every=3",
                           "eval.prompts=64", "checkpoint.keep=1", "dist.ranks=1"}) {
    CHECK(hash_with({free}) == hash);
  }
  for (const char* bound : {"run.seed=1", "optimizer.lr=2e-4", "model.layers=3", "task.dim=21", "train.batch=32",
                            "train.precision=bf16", "schedule.name=cosine", "task.curriculum.enabled=false"}) {
    CHECK(hash_with({bound}) != hash);
  }
  // The length of a falling schedule decides its learning rates, wherever it comes from.
  const std::string cosine = hash_with({"schedule.name=cosine", "train.steps=1000"});
  CHECK(hash_with({"schedule.name=cosine", "train.steps=2000"}) != cosine);
  CHECK(hash_with({"schedule.name=cosine", "train.steps=2000", "schedule.total=1000"}) == cosine);
  CHECK(hash_with({"schedule.name=cosine", "train.steps=1000", "schedule.every=10"}) != cosine);

  const std::vector<std::string> differences = identity_differences(
      parse_config(kMinimal, "x.toml"), parse_config(kMinimal, "x.toml", {"optimizer.lr=2e-4", "eval.every=3"}));
  CHECK(differences == std::vector<std::string>{"optimizer.lr: 0.0001, now 0.0002"});
  const auto resolved_with = [](const std::vector<std::string>& overrides) {
    return resolved_toml(parse_config(kMinimal, "x.toml", overrides));
  };
  const auto between = [](const std::string& before, const std::string& now) {
    return identity_differences(std::string_view(before), std::string_view(now));
  };
  CHECK(between(resolved_with({}), resolved_with({"optimizer.lr=2e-4", "eval.every=3"})) == differences);
  CHECK(between(resolved_with({"schedule.total=5"}), resolved_with({"run.name=b", "train.steps=7"})).empty());
  CHECK(between(resolved_with({"schedule.name=cosine"}), resolved_with({"schedule.name=cosine", "train.steps=7"})) ==
        std::vector<std::string>{"schedule.total: 500000, now 7"});
  CHECK(between("[a]\nb = 1\n", "") == std::vector<std::string>{"a.b: 1, now not set"});
  CHECK(between("no configuration", "").empty());
}

TEST_CASE("settings: a value is looked up as what it was declared") {
  const RunConfig config = parse_config(kMinimal, "x.toml");
  CHECK(config.settings.number("task.dim") == 20.0);
  CHECK_THROWS_WITH_AS(static_cast<void>(config.settings.integer("optimizer.lr")),
                       "settings: optimizer.lr is a number, asked for as an integer", ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(config.settings.text("task.test_depth")),
                       "settings: task.test_depth has no value here", ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(SettingKey::integer("a.b", "").with_default(0.5)), ArgumentError);
  CHECK(SettingKey::number("a.b", "").with_default(1).fallback == SettingValue(1.0));
  CHECK(SettingKey::number("a.b", "").above(0).expected() == "a number > 0");
  CHECK(SettingKey::number("a.b", "").at_most(2).expected() == "a number <= 2");
  CHECK(SettingKey::integer("a.b", "").between(1, 1).expected() == "an integer: 1");
}

TEST_CASE("settings: a curriculum grows in stages and stops at its end") {
  const Curriculum off = curriculum_of(parse_config(kMinimal, "x.toml", {"task.curriculum.enabled=false"}).settings);
  CHECK(off.dims.at(0) == 20);
  CHECK(off.points.at(1000000) == 41);
  const Curriculum on =
      curriculum_of(parse_config(kMinimal, "x.toml",
                                 {"task.curriculum.dims_start=3", "task.curriculum.dims_end=10",
                                  "task.curriculum.dims_increment=4", "task.curriculum.dims_interval=5"})
                        .settings);
  CHECK(on.dims.at(4) == 3);
  CHECK(on.dims.at(5) == 7);
  CHECK(on.dims.at(10) == 10);
  CHECK(on.dims.at(999999999999) == 10);
}

TEST_CASE("config schema: every key is explained and in the JSON schema") {
  const Schema schema;
  const nlohmann::json json = nlohmann::json::parse(json_schema(schema));
  for (const Schema::Declaration& declaration : schema.all()) {
    const SettingKey& key = *declaration.key;
    CAPTURE(key.path);
    CHECK_FALSE(key.doc.empty());
    const std::string explained = explain_key(schema, key.path);
    CHECK(contains(explained, key.doc));
    CHECK(contains(explained, key.expected()));
    // A default that its own key refuses would make an untouched configuration wrong.
    if (key.fallback.index() != 0) CHECK_FALSE(key.refuse(key.fallback).has_value());
    if (!key.fallback_path.empty()) CHECK_FALSE(schema.declarations(key.fallback_path).empty());
    std::string pointer;
    for (std::string rest = key.path; !rest.empty();) {
      const std::size_t dot = std::min(rest.find('.'), rest.size());
      pointer += "/properties/" + rest.substr(0, dot);
      rest.erase(0, dot + 1);
    }
    CHECK(json.contains(nlohmann::json::json_pointer(pointer)));
  }
  CHECK(json["additionalProperties"] == false);
  CHECK(json["properties"]["train"]["properties"]["steps"]["default"] == 500000);
  CHECK(json["properties"]["optimizer"]["properties"]["lr"]["exclusiveMinimum"] == 0);
  CHECK(explain_key(schema, "no.such").empty());
}

TEST_CASE("config command") {
  const auto run = [](std::vector<std::string> arguments) {
    CLI::App app;
    std::function<int()> action;
    add_config_command(app, action);
    std::reverse(arguments.begin(), arguments.end());
    app.parse(arguments);
    REQUIRE(action != nullptr);
    return action();
  };
  const std::string quickstart = source_root() / "configs/quickstart.toml";
  CHECK(run({"config", "check", quickstart, "-o", "model.layers=6", "-o", "train.steps=10"}) == 0);
  CHECK_THROWS_WITH_AS(run({"config", "check", "-o", "model.layrs=6", quickstart}),
                       doctest::Contains("did you mean `model.layers`?"), ConfigError);
  CHECK(run({"config", "explain", "optimizer.lr"}) == 0);
  CHECK_THROWS_WITH_AS(run({"config", "explain", "optimzer.lr"}), doctest::Contains("did you mean `optimizer.lr`?"),
                       ConfigError);
  CHECK(run({"config", "schema"}) == 0);
}

}  // namespace
}  // namespace graft
