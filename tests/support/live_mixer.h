#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/parameter_store.h"
#include "models/mixer.h"
#include "models/model_config.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace graft::test {

/// A mixer on a device, with its parameters as after initialisation.
struct LiveMixer {
  LiveMixer(Backend backend, Precision precision, const MixerEntry& entry, const ModelConfig& config,
            const BlockPosition& position)
      : device(backend, precision, 2), mixer(entry.make(store, entry.name, config, position)) {
    store.allocate(device.ctx());
    store.initialize(device.ctx(), 7);
  }

  /// Random parameters instead: most of the initial ones are so small that little would depend on them.
  void randomize() {
    const auto& entries = store.entries();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      store.write(device.ctx(), entries[i], ParameterStore::Buffer::Weights,
                  randn(entries[i].shape, Role::Master, 100 + i, 0.3).values);
    }
    store.refresh_compute_copy(device.ctx());
  }
  /// The values of a parameter, given its whole name.
  [[nodiscard]] std::vector<double> read(const std::string& name) const {
    const ParameterStore::Entry* entry = store.find(name);
    REQUIRE(entry != nullptr);
    return store.read(device.ctx(), *entry, ParameterStore::Buffer::Weights);
  }
  [[nodiscard]] std::vector<double> operator()(const HostTensor& x) const {
    return device.values((*mixer)(device.ctx(), device.tensor(x)));
  }

  TestDevice device;
  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
};

}  // namespace graft::test
