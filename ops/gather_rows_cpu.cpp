#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/gather_rows.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 32;

void forward(Stream& stream, const GatherRowsForward& args) {
  const std::int64_t tokens = args.x.shape[1];
  const std::int64_t columns = args.x.shape[2];
  const std::int64_t count = args.positions.shape[1];
  const auto* const positions = args.positions.as<std::int32_t>();
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.y.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(columns));
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t position = positions[i];
        if (position >= 0 && position < tokens) {
          load_row(args.x, (i / count * tokens + position) * columns, columns, row.data());
        } else {
          std::fill(row.begin(), row.end(), std::numeric_limits<A>::quiet_NaN());
        }
        store_row(args.y, i * columns, columns, row.data());
      }
    });
  });
}

void backward(Stream& stream, const GatherRowsBackward& args) {
  if (!args.dx) return;
  const std::int64_t tokens = args.dx.view.shape[1];
  const std::int64_t columns = args.dx.view.shape[2];
  const std::int64_t count = args.positions.shape[1];
  const auto* const positions = args.positions.as<std::int32_t>();
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.dx.view.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(columns)), sum(row);
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t sequence = i / tokens;
        bool named = false;
        std::fill(sum.begin(), sum.end(), A{0});
        for (std::int64_t j = sequence * count; j < (sequence + 1) * count; ++j) {
          if (positions[j] != i % tokens) continue;
          named = true;
          load_row(args.dy, j * columns, columns, row.data());
          for (std::size_t c = 0; c < row.size(); ++c) sum[c] += row[c];
        }
        if (named || !args.dx.accumulate) store_gradient(args.dx, i * columns, columns, sum.data());
      }
    });
  });
}

const Register registered_forward{gather_rows_forward, Backend::Cpu, forward};
const Register registered_backward{gather_rows_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
