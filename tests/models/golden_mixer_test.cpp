// Golden cases of single mixers: attention as in GPT-NeoX, Mamba and Mamba-2, the last two also token by token.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/require.h"
#include "models/mixer.h"
#include "ops/advance_length.h"
#include "tests/support/golden_model.h"
#include "tests/support/pieces.h"

namespace graft::test {
namespace {

/// The states of a convolution and a scan while a sequence is read token by token. The reference keeps four inputs of
/// the convolution, the oldest first; ours keeps the three it still needs, [B, 3, channels].
void check_steps(GoldenRun& run, const Mixer& mixer) {
  const GoldenCase& golden = run.golden();
  const Context& ctx = run.ctx();
  const Shape& x = golden.shape("in.x");
  const HostTensor whole{x, golden.values("in.x")};
  const MixerState state = mixer.make_state(ctx, x[0], x[1]);
  REQUIRE(state.parts.size() == 2);
  const Tensor length = ctx.empty_run({1}, DType::I32, "tokens read");
  for (const Tensor& part : {state.parts[0], state.parts[1], length}) {
    ctx.stream->zero(part.mutable_view().data, part.bytes());
  }
  const auto inputs = [&] { return run.device().values(state.parts[0]); };
  const std::int64_t channels = state.parts[0].shape()[2];
  std::vector<double> outputs(whole.values.size());
  std::vector<double> before = inputs();
  const auto compare = [&](const std::string& when) {
    const std::vector<double> now = inputs();
    std::vector<double> four(static_cast<std::size_t>(x[0] * channels * 4));
    for (std::int64_t b = 0; b < x[0]; ++b) {
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t k = 0; k < 4; ++k) {
          const std::vector<double>& from = k == 0 ? before : now;
          four[static_cast<std::size_t>((b * channels + c) * 4 + k)] =
              from[static_cast<std::size_t>((b * 3 + std::max<std::int64_t>(k - 1, 0)) * channels + c)];
        }
      }
    }
    run.check_output("out.step.conv_state_" + when, four);
    run.check_output("out.step.ssm_state_" + when, run.device().values(state.parts[1]));
  };
  for (std::int64_t t = 0; t < x[1]; ++t) {
    before = inputs();
    const Tensor token = run.tensor({x[0], 1, x[2]}, tokens_of(whole, t, 1).values);
    const std::vector<double> y = run.device().values(mixer.extend(ctx, token, state, length));
    advance_length(ctx, length, 1);
    for (std::int64_t b = 0; b < x[0]; ++b) {
      std::copy_n(y.begin() + static_cast<std::ptrdiff_t>(b * x[2]), x[2],
                  outputs.begin() + static_cast<std::ptrdiff_t>((b * x[1] + t) * x[2]));
    }
    if (t == x[1] / 2) compare("mid");
  }
  compare("end");
  run.check_output("out.y", outputs);
}

void run_mixer(GoldenRun& run, const char* symbol, const ModelConfig& config, std::vector<NamePair> pairs) {
  for (NamePair& pair : pairs) pair.ours = "mixer." + pair.ours;
  CaseParameters parameters(run, std::move(pairs));
  const std::unique_ptr<Mixer> mixer = find_mixer(symbol).make(parameters.store(), "mixer", config, {0, 1});
  parameters.load();
  const Context& ctx = run.ctx();
  const Tensor x = run.tensor("in.x");
  Tape tape;
  const Tensor y = (*mixer)(ctx.with_tape(tape), x);
  run.check_output("out.y", run.device().values(y));
  run.check_projected_loss(run.device().values(y));
  parameters.store().begin_gradients();
  const Tensor cotangent = run.tensor(y.shape(), run.golden().values("in.cotangent"));
  const Grads grads = tape.backward_from(ctx, {{y, cotangent}}, &parameters.store());
  parameters.store().finish_gradients(ctx);
  run.check_gradient("in.x", run.device().values(grads.tensor(x)));
  parameters.check_gradients();
  if (run.golden().has("out.step.ssm_state_mid")) check_steps(run, *mixer);
}

void run_attention(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  ModelConfig config;
  config.heads = golden.integer("heads");
  config.width = config.heads * golden.integer("head_dim");
  config.rotary = golden.number("rotary_pct");
  config.rotary_base = golden.number("rotary_base");
  const std::vector<std::int64_t> rows = rows_of_interleaved_heads(config.heads, config.width);
  std::vector<NamePair> pairs;
  for (const std::string part : {"weight", "bias"}) {
    pairs.push_back({"qkv." + part, "attention.query_key_value." + part, false, rows});
    pairs.push_back({"out." + part, "attention.dense." + part});
  }
  run_mixer(run, "A", config, pairs);
}

void run_mamba(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  ModelConfig config;
  config.width = golden.integer("d_model");
  config.state = golden.integer("d_state");
  run_mixer(run, "M", config,
            {{"in.weight", "in_proj.weight"},
             {"conv.weight", "conv1d.weight"},
             {"conv.bias", "conv1d.bias"},
             {"x.weight", "x_proj.weight"},
             {"dt.weight", "dt_proj.weight"},
             {"dt.bias", "dt_proj.bias"},
             {"a_log", "A_log"},
             {"skip", "D"},
             {"out.weight", "out_proj.weight"}});
}

void run_mamba2(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  ModelConfig config;
  config.width = golden.integer("d_model");
  config.state = golden.integer("d_state");
  config.settings.set("model.head_dim", golden.integer("headdim"));
  config.settings.set("model.groups", golden.integer("ngroups"));
  run_mixer(run, "M2", config,
            {{"in.weight", "in_proj.weight"},
             {"conv.weight", "conv1d.weight"},
             {"conv.bias", "conv1d.bias"},
             {"dt.bias", "dt_bias"},
             {"a_log", "A_log"},
             {"skip", "D"},
             {"norm.weight", "norm.weight"},
             {"out.weight", "out_proj.weight"}});
}

const RegisterGolden attention{{"gptneox_attention*", run_attention}};
const RegisterGolden mamba{{"mamba_mixer*", run_mamba}};
const RegisterGolden mamba2{{"mamba2_mixer*", run_mamba2}};

}  // namespace
}  // namespace graft::test
