// Golden cases of Mamba, S4, S4-Mamba and of hybrids with attention, as the in-context-learning study builds them.
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/require.h"
#include "tests/support/golden_model.h"

namespace graft::test {
namespace {

constexpr std::int64_t kHybridHeads = 8;  // whatever the configuration says

/// What a block holds is read off the reference's parameters, block by block.
void run_mamba(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  ModelConfig config;
  config.width = golden.integer("n_embd");
  config.heads = kHybridHeads;
  config.init = BlockInit::Default;
  std::vector<NamePair> pairs = {{"final_norm.gain", "_backbone.norm_f.weight"},
                                 {"final_norm.bias", "_backbone.norm_f.bias"}};
  for (const char* part : {"weight", "bias"}) {
    pairs.push_back({fmt::format("read_in.{}", part), fmt::format("_read_in.{}", part)});
    pairs.push_back({fmt::format("read_out.{}", part), fmt::format("_read_out.{}", part)});
  }
  config.positions = Positions::None;
  for (const std::string& name : golden.names("param.")) {
    if (name.find("wpe") == std::string::npos && name.find("pos") == std::string::npos) continue;
    config.positions = Positions::Learned;
    config.position_rows = golden.shape("param." + name)[0];
    pairs.push_back({"positions.weight", name});
  }
  for (std::int64_t block = 0; golden.has(fmt::format("param._backbone.layers.{}.norm.weight", block)); ++block) {
    const std::string theirs = fmt::format("_backbone.layers.{}.", block);
    const std::string ours = fmt::format("blocks.{}.", block);
    pairs.push_back({ours + "norm.gain", theirs + "norm.weight"});
    pairs.push_back({ours + "norm.bias", theirs + "norm.bias"});
    if (golden.has("param." + theirs + "mixer.c_attn.weight")) {
      config.pattern += "A";
      for (const char* part : {"weight", "bias"}) {
        pairs.push_back({ours + "attention.qkv." + part, theirs + "mixer.c_attn." + part});
        pairs.push_back({ours + "attention.out." + part, theirs + "mixer.c_proj." + part});
      }
      continue;
    }
    const auto s4d = [&](const std::string& own, const std::string& reference) {
      for (const auto& [mine, yours] : {std::pair{"c", "kernel.C"},
                                        {"log_dt", "kernel.log_dt"},
                                        {"log_a_real", "kernel.log_A_real"},
                                        {"a_imag", "kernel.A_imag"},
                                        {"skip", "D"}}) {
        pairs.push_back({ours + own + mine, theirs + reference + yours});
      }
      config.state = 2 * golden.shape("param." + theirs + reference + "kernel.A_imag")[1];
    };
    if (golden.has("param." + theirs + "mixer.s4.D")) {
      config.pattern += "S";
      s4d("s4.s4d.", "mixer.s4.");
      for (const char* part : {"weight", "bias"}) {
        pairs.push_back({ours + "s4.out." + part, theirs + "mixer.s4.output_linear.0." + part});
      }
      continue;
    }
    if (golden.has("param." + theirs + "mixer.S4DMamba.D")) {
      config.pattern += "Sm";
      s4d("s4_mamba.s4d.", "mixer.S4DMamba.");
      pairs.push_back({ours + "s4_mamba.in.weight", theirs + "mixer.in_proj.weight"});
      pairs.push_back({ours + "s4_mamba.conv.weight", theirs + "mixer.conv1d.weight"});
      pairs.push_back({ours + "s4_mamba.conv.bias", theirs + "mixer.conv1d.bias"});
      pairs.push_back({ours + "s4_mamba.out.weight", theirs + "mixer.out_proj.weight"});
      continue;
    }
    config.pattern += "M";
    config.state = golden.shape("param." + theirs + "mixer.A_log")[1];
    const auto pair = [&](const char* own, const char* reference) {
      pairs.push_back({ours + "mamba." + own, theirs + "mixer." + reference});
    };
    pair("in.weight", "in_proj.weight");
    pair("conv.weight", "conv1d.weight");
    pair("conv.bias", "conv1d.bias");
    pair("x.weight", "x_proj.weight");
    pair("dt.weight", "dt_proj.weight");
    pair("dt.bias", "dt_proj.bias");
    pair("a_log", "A_log");
    pair("skip", "D");
    pair("out.weight", "out_proj.weight");
  }
  CaseModel model(run, config, pairs);
  run_vector_case(run, model);
}

const RegisterGolden mamba{{"icl_mamba*", run_mamba}};
const RegisterGolden s4{{"icl_s4*", run_mamba}};
const RegisterGolden standard_hybrid{{"icl_standard_hybrid*", run_mamba}};

}  // namespace
}  // namespace graft::test
