#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/device.h"

namespace graft {

/// A network y = w2 . relu(W1 x + b1) + b2 that is trained from scratch on a prompt's points with Adam and the mean
/// squared error, on the engine's CPU backend with one thread.
///   W1 [hidden, dim], b1 [hidden] start uniform on +-1/sqrt(dim);  w2 [hidden], b2 on +-1/sqrt(hidden)
/// Up to `batch` points each step sees all of them, otherwise `batch` different ones drawn anew.
/// Source: Garg et al. 2022, appendix (two-layer networks), with the settings of krafton-ai/mambaformer-icl.
class TwoLayerNet {
 public:
  struct Options {
    std::int64_t hidden = 100;
    std::int64_t steps = 100;
    std::int64_t batch = 100;
    double learning_rate = 5e-3;
    Precision precision = Precision::Fp32;  // or Fp64
  };

  TwoLayerNet(std::int64_t dim, const Options& options);
  explicit TwoLayerNet(std::int64_t dim) : TwoLayerNet(dim, Options{}) {}
  ~TwoLayerNet();
  TwoLayerNet(const TwoLayerNet&) = delete;
  TwoLayerNet& operator=(const TwoLayerNet&) = delete;

  /// Weights from `seed`, and an optimiser that has seen nothing.
  void start(std::uint64_t seed);
  /// Trains on xs [points, dim] and ys [points], at least one point, for options.steps steps.
  void train(std::span<const float> xs, std::span<const float> ys);
  [[nodiscard]] double operator()(std::span<const float> x) const;
  /// A parameter's values: "first.weight", "first.bias", "second.weight" or "second.bias".
  [[nodiscard]] std::vector<double> parameter(std::string_view name) const;

 private:
  struct Engine;
  std::unique_ptr<Engine> engine_;
};

}  // namespace graft
