#include "bench/support/bench.h"

#include <vector>

#include "engine/error.h"
#include "engine/philox.h"
#include "engine/stream.h"

namespace graft::bench {

std::vector<OpBenchmark>& registry() {
  static std::vector<OpBenchmark> benchmarks;
  return benchmarks;
}

Tensor random_tensor(const Context& ctx, const Shape& shape, DType dtype, std::uint64_t seed) {
  // A million different values, repeated: as good as fresh ones for timing, and quick to draw.
  constexpr std::int64_t kDistinct = 1 << 20;
  Tensor tensor = ctx.empty_run(shape, dtype, "benchmark input");
  const std::int64_t count = tensor.elements();
  const std::int64_t distinct = count < kDistinct ? count : kDistinct;
  const Draw draw{seed, RandomDomain::Bootstrap, 0, 0};
  std::vector<std::byte> host(tensor.bytes());
  const auto fill = [&](auto type, auto value) {
    using T = decltype(type);
    auto* to = reinterpret_cast<T*>(host.data());
    for (std::int64_t i = 0; i < distinct; ++i) to[i] = value(static_cast<std::uint32_t>(i));
    for (std::int64_t i = distinct; i < count; ++i) to[i] = to[i - distinct];
  };
  switch (dtype) {
    case DType::F32:
      fill(float{}, [&](std::uint32_t i) { return draw.normal(0, i); });
      break;
    case DType::BF16:
      fill(bfloat16{}, [&](std::uint32_t i) { return bfloat16(draw.normal(0, i)); });
      break;
    case DType::F64:
      fill(double{}, [&](std::uint32_t i) { return static_cast<double>(draw.normal(0, i)); });
      break;
    case DType::I32:
      fill(std::int32_t{}, [&](std::uint32_t i) { return static_cast<std::int32_t>(draw.bits(0, i) >> 1U); });
      break;
    default:
      throw ArgumentError("random_tensor: expected float32, bfloat16, float64 or int32");
  }
  ctx.stream->upload(tensor.mutable_view().data, host.data(), host.size(), "benchmark input");
  return tensor;
}

double bytes_of(std::initializer_list<Tensor> tensors) { return bytes_of(std::vector<Tensor>(tensors)); }

double bytes_of(const std::vector<Tensor>& tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += tensor ? static_cast<double>(tensor.bytes()) : 0;
  return bytes;
}

}  // namespace graft::bench
