#include "ops/gated_rms_norm.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

template <class A>
void forward_rows(Stream& stream, const GatedRmsNormForward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  const std::int64_t z_row = args.z.shape.columns();
  const std::int64_t groups = width / args.group_size;
  const auto size = static_cast<std::size_t>(width);
  std::vector<A> weight(size);
  load_row(args.weight, 0, width, weight.data());
  parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
    std::vector<A> x(size), gate(size);
    for (std::int64_t row = first; row < last; ++row) {
      load_row(args.x, row * width, width, x.data());
      load_row(args.z, row * z_row + args.z_offset, width, gate.data());
      for (A& value : gate) value = silu(value);
      if (!args.norm_before_gate) {
        for (std::size_t i = 0; i < size; ++i) x[i] *= gate[i];
      }
      for (std::int64_t group = 0; group < groups; ++group) {
        A* const at = x.data() + group * args.group_size;
        const A square = interleaved_sum<A>(args.group_size, [&](std::int64_t i) { return at[i] * at[i]; }) /
                         static_cast<A>(args.group_size);
        const A rstd = A{1} / std::sqrt(square + static_cast<A>(args.eps));
        if (args.rstd) store_row(args.rstd, row * groups + group, 1, &rstd);
        for (std::int64_t i = 0; i < args.group_size; ++i)
          at[i] *= rstd * weight[static_cast<std::size_t>(group * args.group_size + i)];
      }
      if (args.norm_before_gate) {
        for (std::size_t i = 0; i < size; ++i) x[i] *= gate[i];
      }
      store_row(args.y, row * width, width, x.data());
    }
  });
}

template <class A>
void backward_rows(Stream& stream, const GatedRmsNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  const std::int64_t z_row = args.z.shape.columns();
  const std::int64_t groups = width / args.group_size;
  const auto size = static_cast<std::size_t>(width);
  std::vector<A> weight(size);
  load_row(args.weight, 0, width, weight.data());
  const std::int64_t blocks = gated_rms_norm_row_blocks(rows);
  const std::int64_t rows_a_block = ceil_div(rows, blocks);

  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    // u is what was normalised, d its gradient
    std::vector<A> x(size), z(size), dy(size), u(size), d(size), dz(size), dweight(size, A{0});
    const std::int64_t last = std::min(rows, (block + 1) * rows_a_block);
    for (std::int64_t row = block * rows_a_block; row < last; ++row) {
      load_row(args.x, row * width, width, x.data());
      load_row(args.z, row * z_row + args.z_offset, width, z.data());
      load_row(args.dy, row * width, width, dy.data());
      for (std::size_t i = 0; i < size; ++i) u[i] = args.norm_before_gate ? x[i] : x[i] * silu(z[i]);
      for (std::int64_t group = 0; group < groups; ++group) {
        const A rstd = load_element<A>(args.rstd, row * groups + group);
        const auto begin = static_cast<std::size_t>(group * args.group_size);
        const auto end = begin + static_cast<std::size_t>(args.group_size);
        for (std::size_t i = begin; i < end; ++i) {
          const A gated = args.norm_before_gate ? dy[i] * silu(z[i]) : dy[i];  // gradient of uhat * weight
          u[i] *= rstd;
          dweight[i] += gated * u[i];
          d[i] = gated * weight[i];
        }
        const A* const duhat = d.data() + begin;
        const A* const uhat = u.data() + begin;
        const A along = interleaved_sum<A>(args.group_size, [&](std::int64_t i) { return duhat[i] * uhat[i]; }) /
                        static_cast<A>(args.group_size);
        for (std::size_t i = begin; i < end; ++i) d[i] = rstd * (d[i] - u[i] * along);
      }
      for (std::size_t i = 0; i < size; ++i) {
        const A slope = silu_slope(z[i]);
        if (args.norm_before_gate) {
          dz[i] = dy[i] * u[i] * weight[i] * slope;
        } else {
          dz[i] = d[i] * x[i] * slope;
          d[i] *= silu(z[i]);
        }
      }
      store_gradient(args.dx, row * width, width, d.data());
      store_gradient(args.dz, row * z_row + args.z_offset, width, dz.data());
    }
    if (args.partial) std::copy(dweight.begin(), dweight.end(), args.partial.as<A>() + block * width);
  });
  if (!args.partial) return;
  std::vector<A> sums(size, A{0});
  for (std::int64_t block = 0; block < blocks; ++block) {
    const A* const mine = args.partial.as<A>() + block * width;
    for (std::size_t i = 0; i < size; ++i) sums[i] += mine[i];
  }
  store_gradient(args.dweight, 0, width, sums.data());
}

void forward(Stream& stream, const GatedRmsNormForward& args) {
  with_accumulate(args.weight.dtype, [&](auto a) { forward_rows<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const GatedRmsNormBackward& args) {
  with_accumulate(args.weight.dtype, [&](auto a) { backward_rows<decltype(a)>(stream, args); });
}

const Register registered_forward{gated_rms_norm_forward, Backend::Cpu, forward};
const Register registered_backward{gated_rms_norm_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
