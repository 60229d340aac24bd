#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/device.h"
#include "train/config.h"
#include "train/experiment.h"
#include "train/session.h"

namespace graft::test {

/// A run of 60 steps in which everything changes that can: the learning rate rises and falls, prompts grow at steps
/// 13, 26 and 39, dimensions at 7 and 14.
inline constexpr const char* kTinyConfig = R"([run]
name = "tiny"
seed = 5
[task]
name = "linear_regression"
dim = 3
points = 5
[task.curriculum]
enabled = true
dims_start = 1
dims_increment = 1
dims_interval = 7
points_start = 2
points_increment = 1
points_interval = 13
[model]
preset = "transformer"
width = 16
layers = 2
heads = 2
[optimizer]
name = "adamw"
lr = 3e-3
weight_decay = 0.01
clip = 1.0
[schedule]
name = "cosine"
warmup = 6
total = 60
final = 0.1
[train]
batch = 8
steps = 60
log_every = 4
[eval]
every = 0
prompts = 24
batch = 8
bootstrap = 20
[checkpoint]
every = 0
)";

[[nodiscard]] inline RunConfig tiny_config(const std::vector<std::string>& overrides = {}) {
  return parse_config(kTinyConfig, "tiny.toml", overrides);
}

/// An experiment on a device.
struct TinySession {
  explicit TinySession(const RunConfig& config, Backend backend = Backend::Cpu, int threads = 2)
      : experiment(config), session(experiment, {backend, 0}, {threads}, true) {}
  Experiment experiment;
  Session session;
};

}  // namespace graft::test
