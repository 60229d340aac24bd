#pragma once

#include <memory>
#include <string_view>

#include "engine/device.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

class Stream;
class Tape;
class Runtime;

/// Where, how and into what an op runs. Passed to every op by reference; never global.
struct Context {
  Backend backend = Backend::Cpu;
  Stream* stream = nullptr;
  std::shared_ptr<Memory> memory;      // step tensors: an arena in training, a pool elsewhere
  std::shared_ptr<Memory> run_memory;  // what outlives a step
  Tape* tape = nullptr;                // null: inference, nothing is kept for backward
  Precision precision = Precision::Fp32;
  StepState* state = nullptr;  // in device memory; null where an op needs none
  bool training = false;       // dropout and the like are on

  /// An uninitialised step tensor. `name` appears in messages about memory.
  [[nodiscard]] Tensor empty(const Shape& shape, DType dtype, std::string_view name = "tensor") const;
  /// An uninitialised tensor at an address that stays for the whole run.
  [[nodiscard]] Tensor empty_run(const Shape& shape, DType dtype, std::string_view name = "tensor") const;

  /// dtype of activations: bfloat16 in bf16, float64 in fp64, float32 otherwise.
  [[nodiscard]] DType compute_dtype() const;
  /// dtype of the residual stream, statistics, losses and gradients of parameters.
  [[nodiscard]] DType stream_dtype() const { return precision == Precision::Fp64 ? DType::F64 : DType::F32; }

  [[nodiscard]] Context with_tape(Tape& tape_to_use) const;
};

}  // namespace graft
