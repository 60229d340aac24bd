#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/gather_positions.h"

namespace graft {
namespace {

template <class In, class Out>
void gather(Stream& stream, const GatherPositions& args) {
  const std::int64_t tokens = args.x.shape[1];
  const std::int64_t width = args.x.shape[2];
  const std::int64_t count = args.y.shape[1];
  const std::int64_t columns = args.y.shape[2];
  parallel_for(stream, args.x.shape[0], 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      for (std::int64_t i = 0; i < count; ++i) {
        const In* from = args.x.as<In>() + (b * tokens + i * args.stride + args.offset) * width;
        Out* to = args.y.as<Out>() + (b * count + i) * columns;
        for (std::int64_t c = 0; c < columns; ++c) to[c] = static_cast<Out>(from[c]);
      }
    }
  });
}

void gather_cpu(Stream& stream, const GatherPositions& args) {
  switch (args.x.dtype) {
    case DType::F64:
      return gather<double, double>(stream, args);
    case DType::BF16:
      return gather<bfloat16, float>(stream, args);
    default:
      return gather<float, float>(stream, args);
  }
}

const Register registered{gather_positions_kernel, Backend::Cpu, gather_cpu};

}  // namespace
}  // namespace graft
