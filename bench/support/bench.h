#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft::bench {

/// What one benchmark launches, and the least it must do: bytes moved once, floating-point operations.
struct Work {
  std::function<void(const Context&)> run;
  double bytes = 0;
  double flops = 0;
};

/// Allocates inputs (in ctx.run_memory, random, never zeros) and returns the launch. Called several times, so that
/// timing rotates among input sets larger than the L2 cache together.
using Setup = std::function<Work(const Context& ctx)>;

/// One op in one shape; timed in each of the precisions the backend supports.
struct OpBenchmark {
  std::string name;  // "attention/forward/B64_H8_T82_hd32"
  std::vector<Precision> precisions;
  Setup setup;
};

/// All benchmarks of the program.
std::vector<OpBenchmark>& registry();

/// Adds a benchmark when the file that holds it is loaded:
///   const Add forward{"glu/forward/5248x1024", {Precision::Fp32, Precision::Bf16}, [](const Context& ctx) {...}};
struct Add {
  Add(std::string name, std::vector<Precision> precisions, Setup setup) {
    registry().push_back({std::move(name), std::move(precisions), std::move(setup)});
  }
};

/// Standard normals (integers below 2^31 for integer dtypes) in run memory.
[[nodiscard]] Tensor random_tensor(const Context& ctx, const Shape& shape, DType dtype, std::uint64_t seed = 1);

/// Bytes of the tensors together; those that are absent have none.
[[nodiscard]] double bytes_of(std::initializer_list<Tensor> tensors);
[[nodiscard]] double bytes_of(const std::vector<Tensor>& tensors);

}  // namespace graft::bench
