#include "ops/gather_rows.h"

#include <fmt/format.h>

#include <cstddef>
#include <vector>

#include "bench/support/bench.h"
#include "engine/stream.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t batch, tokens, count, width;
};
// the scored positions of the retrieval tasks
constexpr Size kSizes[] = {{64, 109, 3, 1024}, {64, 205, 2, 1024}};

/// The last positions of each sequence but one, as the tasks have them.
Tensor last_positions(const Context& ctx, const Size& size) {
  std::vector<std::int32_t> host(static_cast<std::size_t>(size.batch * size.count));
  for (std::size_t i = 0; i < host.size(); ++i) {
    const std::int64_t k = static_cast<std::int64_t>(i) % size.count;
    host[i] = static_cast<std::int32_t>(size.tokens - 1 - size.count + k);
  }
  Tensor positions = ctx.empty_run({size.batch, size.count}, DType::I32, "positions");
  ctx.stream->upload(positions.mutable_view().data, host.data(), positions.bytes(), "positions");
  return positions;
}

Setup work(Size size, bool backward) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.stream_dtype();
    const Tensor x = random_tensor(ctx, {size.batch, size.tokens, size.width}, dtype, 1);
    const Tensor y = random_tensor(ctx, {size.batch, size.count, size.width}, dtype, 2);
    const Tensor positions = last_positions(ctx, size);
    const auto run = [=](const Context& c) {
      if (backward) {
        gather_rows_backward(c, {y.view(), positions.view(), GradTarget{x.mutable_view(), false}});
      } else {
        gather_rows_forward(c, {x.view(), positions.view(), y.mutable_view()});
      }
    };
    return {run, static_cast<double>(y.bytes() + (backward ? x.bytes() : y.bytes())), 0};
  };
}

const bool registered = [] {
  for (const bool backward : {false, true}) {
    for (const Size& s : kSizes) {
      Add(fmt::format("gather_rows/{}/B{}_T{}_N{}_D{}", backward ? "backward" : "forward", s.batch, s.tokens, s.count,
                      s.width),
          {Precision::Fp32}, work(s, backward));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
