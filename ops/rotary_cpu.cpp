#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rotary.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

void rotate(Stream& stream, const RotaryArgs& args) {
  if (!args.y) return;
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    const std::int64_t tokens = args.x.shape[1];
    const std::int64_t width = args.x.shape[2];
    const auto pairs = static_cast<std::size_t>(args.pairs);
    const std::int64_t start = args.start ? *args.start.as<std::int32_t>() : 0;
    parallel_for(stream, args.x.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> x(static_cast<std::size_t>(width)), cosine(pairs), sine(pairs);
      for (std::int64_t row = first; row < last; ++row) {
        for (std::size_t i = 0; i < pairs; ++i) {
          const auto angle = static_cast<A>(rotary_angle(start + row % tokens, args.frequencies[i]));
          cosine[i] = std::cos(angle);
          sine[i] = static_cast<A>(args.direction) * std::sin(angle);
        }
        load_row(args.x, row * width, width, x.data());
        for (const std::int64_t offset : {args.layout.q_offset, args.layout.k_offset}) {
          for (int head = 0; head < args.layout.heads; ++head) {
            A* const part = x.data() + offset + head * args.layout.head_stride;
            for (std::size_t i = 0; i < pairs; ++i) {
              const A low = part[i];
              const A high = part[i + pairs];
              part[i] = low * cosine[i] - high * sine[i];
              part[i + pairs] = high * cosine[i] + low * sine[i];
            }
          }
        }
        store_gradient(args.y, row * width, width, x.data());
      }
    });
  });
}

const Register registered_forward{rotary_forward, Backend::Cpu, rotate};
const Register registered_backward{rotary_backward, Backend::Cpu, rotate};

}  // namespace
}  // namespace graft
