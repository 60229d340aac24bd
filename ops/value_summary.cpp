#include "ops/value_summary.h"

#include <vector>

#include "engine/require.h"
#include "engine/stream.h"

namespace graft {

ValueSummary summarize_values(const Context& ctx, const ConstView& values) {
  require(is_floating(values.dtype), "summarize_values: values are {}, expected a floating dtype",
          name_of(values.dtype));
  ValueSummary all;
  if (values.shape.elements() == 0) return all;
  if (values.dtype == DType::F64 && ctx.backend != Backend::Cpu) {  // a GPU holds only short partial sums in float64
    std::vector<double> copy(static_cast<std::size_t>(values.shape.elements()));
    ctx.stream->download(copy.data(), values.data, copy.size() * sizeof(double), "values");
    for (std::size_t i = 0; i < copy.size(); ++i) all.count(copy[i], static_cast<std::int64_t>(i));
    return all;
  }
  const std::int64_t blocks = summary_blocks(values.shape.elements());
  const Tensor partial =
      ctx.empty_run({blocks * static_cast<std::int64_t>(sizeof(ValueSummary))}, DType::U8, "value summaries");
  value_summary_kernel(ctx, {values, partial.mutable_view().as<ValueSummary>()});
  std::vector<ValueSummary> parts(static_cast<std::size_t>(blocks));
  ctx.stream->download(parts.data(), partial.view().data, partial.bytes(), "value summaries");
  for (const ValueSummary& part : parts) all.merge(part);
  return all;
}

}  // namespace graft
