#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/cross_entropy.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

void forward(Stream& stream, const CrossEntropyForward& args) {
  const std::int64_t rows = args.logits.shape.rows();
  const std::int64_t stored = args.logits.shape.columns();
  const auto* const labels = args.labels.as<std::int32_t>();
  with_accumulate(args.loss.dtype, [&](auto a) {
    using A = decltype(a);
    auto* const row_loss = args.row_loss.as<A>();
    parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(args.columns));
      for (std::int64_t i = first; i < last; ++i) {
        load_row(args.logits, i * stored, args.columns, row.data());
        const A largest = *std::max_element(row.begin(), row.end());
        const A sum = interleaved_sum<A>(
            args.columns, [&](std::int64_t c) { return std::exp(row[static_cast<std::size_t>(c)] - largest); });
        const A log_sum = largest + std::log(sum);
        args.log_sum.as<A>()[i] = log_sum;
        const std::int32_t label = labels[i];
        if (label == kIgnoredLabel) {
          row_loss[i] = A{0};
        } else if (label < 0 || label >= args.columns) {
          row_loss[i] = std::numeric_limits<A>::quiet_NaN();
        } else {
          row_loss[i] = log_sum - row[static_cast<std::size_t>(label)];
        }
      }
    });
    double sum = 0;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      sum += static_cast<double>(row_loss[i]);
      count += labels[i] != kIgnoredLabel ? 1 : 0;
    }
    const double weight = count > 0 ? 1 / static_cast<double>(count) : 0;
    const double loss = sum * weight;
    store_row(args.loss, 0, 1, &loss);
    store_row(args.weight, 0, 1, &weight);
  });
}

void backward(Stream& stream, const CrossEntropyBackward& args) {
  if (!args.dlogits) return;
  const std::int64_t rows = args.logits.shape.rows();
  const std::int64_t stored = args.logits.shape.columns();
  const auto* const labels = args.labels.as<std::int32_t>();
  with_accumulate(args.dloss.dtype, [&](auto a) {
    using A = decltype(a);
    const A scale = load_element<A>(args.dloss, 0) * load_element<A>(args.weight, 0);
    parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> row(static_cast<std::size_t>(stored));
      for (std::int64_t i = first; i < last; ++i) {
        std::fill(row.begin(), row.end(), A{0});
        if (labels[i] != kIgnoredLabel) {
          load_row(args.logits, i * stored, args.columns, row.data());
          const A log_sum = args.log_sum.as<A>()[i];
          for (std::int64_t c = 0; c < args.columns; ++c) {
            auto& value = row[static_cast<std::size_t>(c)];
            value = scale * (std::exp(value - log_sum) - (c == labels[i] ? A{1} : A{0}));
          }
        }
        store_gradient(args.dlogits, i * stored, stored, row.data());
      }
    });
  });
}

const Register registered_forward{cross_entropy_forward, Backend::Cpu, forward};
const Register registered_backward{cross_entropy_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
