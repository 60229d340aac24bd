#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/embedding.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 32;

/// Row `position` of a table of positions; NaN where it has none.
template <class A>
void load_position(const ConstView& table, std::int64_t position, std::vector<A>& row) {
  if (position >= 0 && position < table.shape[0]) {
    load_row(table, position * table.shape[1], table.shape[1], row.data());
  } else {
    std::fill(row.begin(), row.end(), std::numeric_limits<A>::quiet_NaN());
  }
}

std::int64_t value_or_zero(const ConstView& start) { return start ? *start.as<std::int32_t>() : 0; }

void embed(Stream& stream, const EmbeddingForward& args) {
  const std::int64_t tokens = args.ids.shape.columns();
  const std::int64_t vocabulary = args.table.shape[0];
  const std::int64_t width = args.table.shape[1];
  const std::int64_t start = value_or_zero(args.start);
  const auto* const ids = args.ids.as<std::int32_t>();
  with_accumulate(args.y.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.ids.shape.elements(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(width)), position(row);
      for (std::int64_t i = first; i < last; ++i) {
        const bool known = ids[i] >= 0 && ids[i] < vocabulary;
        if (known) {
          load_row(args.table, ids[i] * width, width, row.data());
        } else {
          std::fill(row.begin(), row.end(), std::numeric_limits<A>::quiet_NaN());
        }
        if (args.positions) {
          load_position(args.positions, start + i % tokens, position);
          for (std::size_t j = 0; j < row.size(); ++j) row[j] += position[j];
        }
        store_row(args.y, i * width, width, row.data());
      }
    });
  });
}

void embed_backward(Stream& stream, const EmbeddingBackward& args) {
  const std::int64_t vocabulary = args.dtable.view.shape[0];
  const std::int64_t width = args.dtable.view.shape[1];
  const std::int64_t count = args.ids.shape.elements();
  const auto* const ids = args.ids.as<std::int32_t>();
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    // each block owns some columns of the table and walks over all tokens
    constexpr std::int64_t kColumns = 16;
    parallel_for(stream, width, kColumns, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t columns = last - first;
      std::vector<A> sums(static_cast<std::size_t>(vocabulary * columns), A{0}), row(static_cast<std::size_t>(columns));
      for (std::int64_t i = 0; i < count; ++i) {
        if (ids[i] < 0 || ids[i] >= vocabulary) continue;
        load_row(args.dy, i * width + first, columns, row.data());
        A* const sum = sums.data() + ids[i] * columns;
        for (std::int64_t j = 0; j < columns; ++j) sum[j] += row[static_cast<std::size_t>(j)];
      }
      for (std::int64_t v = 0; v < vocabulary; ++v) {
        store_gradient(args.dtable, v * width + first, columns, sums.data() + v * columns);
      }
    });
  });
}

void add_table(Stream& stream, const AddPositionsForward& args) {
  const std::int64_t tokens = args.x.shape[1];
  const std::int64_t width = args.x.shape[2];
  const std::int64_t start = value_or_zero(args.start);
  with_accumulate(args.y.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.x.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(width)), position(row);
      for (std::int64_t i = first; i < last; ++i) {
        load_row(args.x, i * width, width, row.data());
        load_position(args.table, start + i % tokens, position);
        for (std::size_t j = 0; j < row.size(); ++j) row[j] += position[j];
        store_row(args.y, i * width, width, row.data());
      }
    });
  });
}

void add_table_backward(Stream& stream, const AddPositionsBackward& args) {
  const std::int64_t batch = args.dy.shape[0];
  const std::int64_t tokens = args.dy.shape[1];
  const std::int64_t width = args.dy.shape[2];
  const std::int64_t rows = args.dtable ? args.dtable.view.shape[0] : tokens;
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, rows, 4, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(width)), sum(row);
      for (std::int64_t t = first; t < last; ++t) {
        std::fill(sum.begin(), sum.end(), A{0});
        for (std::int64_t b = 0; t < tokens && b < batch; ++b) {
          load_row(args.dy, (b * tokens + t) * width, width, row.data());
          store_gradient(args.dx, (b * tokens + t) * width, width, row.data());
          for (std::size_t j = 0; j < row.size(); ++j) sum[j] += row[j];
        }
        store_gradient(args.dtable, t * width, width, sum.data());
      }
    });
  });
}

const Register registered_embedding_forward{embedding_forward, Backend::Cpu, embed};
const Register registered_embedding_backward{embedding_backward, Backend::Cpu, embed_backward};
const Register registered_positions_forward{add_positions_forward, Backend::Cpu, add_table};
const Register registered_positions_backward{add_positions_backward, Backend::Cpu, add_table_backward};

}  // namespace
}  // namespace graft
