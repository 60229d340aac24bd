#pragma once

#include <string>

#include "engine/parameter_store.h"
#include "models/model_config.h"
#include "models/sequence_model.h"
#include "tests/support/device.h"

namespace graft::test {

/// A Transformer of width 32 with four heads.
inline ModelConfig small_config(const std::string& pattern = "(AF)*2", Positions positions = Positions::Learned) {
  ModelConfig config;
  config.pattern = pattern;
  config.width = 32;
  config.layers = 2;
  config.heads = 4;
  config.positions = positions;
  return config;
}

/// A model on a device, with weights as after initialisation.
struct LiveModel {
  LiveModel(Backend backend, Precision precision, const ModelConfig& config, const ModelShape& shape)
      : device(backend, precision, 2), model(store, config, shape) {
    store.allocate(device.ctx());
    store.initialize(device.ctx(), 7);
  }
  TestDevice device;
  ParameterStore store;
  SequenceModel model;
};

}  // namespace graft::test
