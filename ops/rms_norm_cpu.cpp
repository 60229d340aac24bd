#include "ops/rms_norm.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

template <class A>
void forward_rows(Stream& stream, const RmsNormForward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  const auto size = static_cast<std::size_t>(width);
  std::vector<A> weight(size);
  load_row(args.weight, 0, width, weight.data());
  parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
    std::vector<A> x(size), addend(args.branch ? size : 0);
    for (std::int64_t row = first; row < last; ++row) {
      load_row(args.x, row * width, width, x.data());
      if (args.branch) {
        load_row(args.branch, row * width, width, addend.data());
        for (std::size_t i = 0; i < size; ++i) x[i] += addend[i];
      }
      if (args.sum) store_row(args.sum, row * width, width, x.data());
      const A* const at = x.data();
      const A square = interleaved_sum<A>(width, [&](std::int64_t i) { return at[i] * at[i]; }) / static_cast<A>(width);
      const A rstd = A{1} / std::sqrt(square + static_cast<A>(args.eps));
      if (args.rstd) store_row(args.rstd, row, 1, &rstd);
      for (std::size_t i = 0; i < size; ++i) x[i] *= rstd * weight[i];
      store_row(args.y, row * width, width, x.data());
    }
  });
}

template <class A>
void backward_rows(Stream& stream, const RmsNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  const auto size = static_cast<std::size_t>(width);
  std::vector<A> weight(size);
  load_row(args.weight, 0, width, weight.data());
  const std::int64_t blocks = rms_norm_row_blocks(rows);
  const std::int64_t rows_a_block = ceil_div(rows, blocks);
  A* const partial = args.partial ? args.partial.as<A>() : nullptr;

  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    std::vector<A> d(size), xhat(size), dy(size), dweight(size, A{0});
    const std::int64_t first = block * rows_a_block;
    const std::int64_t last = std::min(rows, first + rows_a_block);
    for (std::int64_t row = first; row < last; ++row) {
      if (args.dsum) {
        load_row(args.dsum, row * width, width, d.data());
      } else {
        std::fill(d.begin(), d.end(), A{0});
      }
      if (args.dy) {
        load_row(args.x, row * width, width, xhat.data());
        load_row(args.dy, row * width, width, dy.data());
        const A rstd = load_element<A>(args.rstd, row);
        for (std::size_t i = 0; i < size; ++i) {
          xhat[i] *= rstd;
          dweight[i] += dy[i] * xhat[i];
          dy[i] *= weight[i];
        }
        // dxhat minus its component along xhat
        const A* const dxhat = dy.data();
        const A* const direction = xhat.data();
        const A along =
            interleaved_sum<A>(width, [&](std::int64_t i) { return dxhat[i] * direction[i]; }) / static_cast<A>(width);
        for (std::size_t i = 0; i < size; ++i) d[i] += rstd * (dy[i] - xhat[i] * along);
      }
      store_gradient(args.dx, row * width, width, d.data());
      store_gradient(args.dbranch, row * width, width, d.data());
    }
    if (partial != nullptr) std::copy(dweight.begin(), dweight.end(), partial + block * width);
  });
  if (partial == nullptr) return;
  std::vector<A> sums(size, A{0});
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::size_t i = 0; i < size; ++i) sums[i] += partial[block * width + static_cast<std::int64_t>(i)];
  }
  store_gradient(args.dweight, 0, width, sums.data());
}

void forward(Stream& stream, const RmsNormForward& args) {
  with_accumulate(args.weight.dtype, [&](auto a) { forward_rows<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const RmsNormBackward& args) {
  with_accumulate(args.weight.dtype, [&](auto a) { backward_rows<decltype(a)>(stream, args); });
}

const Register registered_forward{rms_norm_forward, Backend::Cpu, forward};
const Register registered_backward{rms_norm_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
