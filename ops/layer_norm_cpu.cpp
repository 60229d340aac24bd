#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/layer_norm.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

template <class A>
void forward_rows(Stream& stream, const LayerNormForward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  std::vector<A> gain(static_cast<std::size_t>(width)), bias(gain);
  load_row(args.gain, 0, width, gain.data());
  load_row(args.bias, 0, width, bias.data());
  parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
    std::vector<A> buffer(static_cast<std::size_t>(width)), addend(args.branch ? buffer.size() : 0);
    A* const x = buffer.data();
    for (std::int64_t row = first; row < last; ++row) {
      load_row(args.x, row * width, width, x);
      if (args.branch) {
        load_row(args.branch, row * width, width, addend.data());
        for (std::int64_t i = 0; i < width; ++i) x[i] += addend[static_cast<std::size_t>(i)];
      }
      if (args.sum) store_row(args.sum, row * width, width, x);
      const A mean = interleaved_sum<A>(width, [&](std::int64_t i) { return x[i]; }) / static_cast<A>(width);
      const A variance = interleaved_sum<A>(width, [&](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); }) /
                         static_cast<A>(width);
      const A rstd = A{1} / std::sqrt(variance + static_cast<A>(args.eps));
      if (args.mean) store_row(args.mean, row, 1, &mean);
      if (args.rstd) store_row(args.rstd, row, 1, &rstd);
      for (std::int64_t i = 0; i < width; ++i) {
        const auto j = static_cast<std::size_t>(i);
        x[i] = (x[i] - mean) * rstd * gain[j] + bias[j];
      }
      store_row(args.y, row * width, width, x);
    }
  });
}

template <class A>
void backward_rows(Stream& stream, const LayerNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  const auto size = static_cast<std::size_t>(width);
  std::vector<A> gain(size);
  load_row(args.gain, 0, width, gain.data());
  const std::int64_t blocks = layer_norm_row_blocks(rows);
  const std::int64_t rows_a_block = ceil_div(rows, blocks);
  A* const partial = args.partial ? args.partial.as<A>() : nullptr;

  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    std::vector<A> d(size), xhat(size), dy(size), dgain(size, A{0}), dbias(size, A{0});
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
        const A mean = load_element<A>(args.mean, row);
        const A rstd = load_element<A>(args.rstd, row);
        for (std::size_t i = 0; i < size; ++i) {
          xhat[i] = (xhat[i] - mean) * rstd;
          dgain[i] += dy[i] * xhat[i];
          dbias[i] += dy[i];
          dy[i] *= gain[i];
        }
        // dxhat minus its components along the constant vector and along xhat
        const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
        const A along_one =
            interleaved_sum<A>(width, [&](std::int64_t i) { return dy[at(i)]; }) / static_cast<A>(width);
        const A along_xhat =
            interleaved_sum<A>(width, [&](std::int64_t i) { return dy[at(i)] * xhat[at(i)]; }) / static_cast<A>(width);
        for (std::size_t i = 0; i < size; ++i) d[i] += rstd * (dy[i] - along_one - xhat[i] * along_xhat);
      }
      store_gradient(args.dx, row * width, width, d.data());
      store_gradient(args.dbranch, row * width, width, d.data());
    }
    if (partial != nullptr) {
      std::copy(dgain.begin(), dgain.end(), partial + block * 2 * width);
      std::copy(dbias.begin(), dbias.end(), partial + (block * 2 + 1) * width);
    }
  });
  if (partial == nullptr) return;
  std::vector<A> sums(2 * size, A{0});
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::size_t i = 0; i < 2 * size; ++i) sums[i] += partial[block * 2 * width + static_cast<std::int64_t>(i)];
  }
  store_gradient(args.dgain, 0, width, sums.data());
  store_gradient(args.dbias, 0, width, sums.data() + size);
}

void forward(Stream& stream, const LayerNormForward& args) {
  with_accumulate(args.gain.dtype, [&](auto a) { forward_rows<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const LayerNormBackward& args) {
  with_accumulate(args.gain.dtype, [&](auto a) { backward_rows<decltype(a)>(stream, args); });
}

const Register registered_forward{layer_norm_forward, Backend::Cpu, forward};
const Register registered_backward{layer_norm_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
