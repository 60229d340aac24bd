#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/argmax.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

template <class A>
std::int64_t largest(const std::vector<A>& row) {
  std::size_t best = 0;
  for (std::size_t c = 0; c < row.size(); ++c) {
    if (std::isnan(row[c])) return static_cast<std::int64_t>(c);
    if (row[c] > row[best]) best = c;
  }
  return static_cast<std::int64_t>(best);
}

void forward(Stream& stream, const Argmax& args) {
  const std::int64_t stored = args.x.shape.columns();
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.x.shape.rows(), 16, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(args.columns));
      for (std::int64_t i = first; i < last; ++i) {
        load_row(args.x, i * stored, args.columns, row.data());
        const std::int64_t index = largest(row);
        if (args.y.dtype == DType::I32) {
          args.y.as<std::int32_t>()[i] = static_cast<std::int32_t>(index);
        } else {
          const auto value = static_cast<double>(index);
          store_row(args.y, i, 1, &value);
        }
      }
    });
  });
}

const Register registered{argmax_kernel, Backend::Cpu, forward};

}  // namespace
}  // namespace graft
