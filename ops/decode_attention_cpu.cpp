#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/decode_attention.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

/// One batch entry and head: stores the new keys and values, then attends for each query.
template <class A>
void extend_head(const AttentionExtension& args, std::int64_t block) {
  const AttentionLayout& layout = args.layout;
  const std::int64_t tokens = args.qkv.shape[1];
  const std::int64_t row = args.qkv.shape[2];
  const std::int64_t capacity = args.keys.shape[2];
  const std::int64_t size = layout.head_dim;
  const std::int64_t head = block % layout.heads;
  const std::int64_t first = block / layout.heads * tokens;  // row of the first token
  const std::int64_t cache = block * capacity * size;
  const std::int64_t length = *args.length.as<std::int32_t>();
  const auto at = [&](std::int64_t i, std::int64_t offset) {
    return (first + i) * row + offset + head * layout.head_stride;
  };
  const auto fits = [&](std::int64_t position) { return position >= 0 && position < capacity; };

  std::vector<A> part(static_cast<std::size_t>(size));
  std::int64_t last = -1;  // position of a query that exists
  for (std::int64_t i = 0; i < tokens; ++i) {
    if (!fits(length + i)) continue;
    last = length + i;
    load_row(args.qkv, at(i, layout.k_offset), size, part.data());
    store_row(args.keys, cache + last * size, size, part.data());
    load_row(args.qkv, at(i, layout.v_offset), size, part.data());
    store_row(args.values, cache + last * size, size, part.data());
  }
  std::vector<A> keys(static_cast<std::size_t>((last + 1) * size)), values(keys.size());
  load_row(args.keys, cache, (last + 1) * size, keys.data());
  load_row(args.values, cache, (last + 1) * size, values.data());

  std::vector<A> query(part.size()), weights(static_cast<std::size_t>(last + 1));
  for (std::int64_t i = 0; i < tokens; ++i) {
    const std::int64_t seen = length + i + 1;
    if (!fits(length + i)) {
      std::fill(part.begin(), part.end(), std::numeric_limits<A>::quiet_NaN());
    } else {
      load_row(args.qkv, at(i, layout.q_offset), size, query.data());
      A largest = -std::numeric_limits<A>::infinity();
      for (std::int64_t j = 0; j < seen; ++j) {
        const A* const key = keys.data() + j * size;
        weights[static_cast<std::size_t>(j)] =
            static_cast<A>(args.scale) *
            interleaved_sum<A>(size, [&](std::int64_t d) { return query[static_cast<std::size_t>(d)] * key[d]; });
        largest = std::max(largest, weights[static_cast<std::size_t>(j)]);
      }
      std::fill(part.begin(), part.end(), A{0});
      A sum{0};
      for (std::int64_t j = 0; j < seen; ++j) {
        const A weight = std::exp(weights[static_cast<std::size_t>(j)] - largest);
        const A* const value = values.data() + j * size;
        sum += weight;
        for (std::int64_t d = 0; d < size; ++d) part[static_cast<std::size_t>(d)] += weight * value[d];
      }
      for (A& value : part) value /= sum;
    }
    store_row(args.y, (first + i) * layout.width() + head * size, size, part.data());
  }
}

void extend(Stream& stream, const AttentionExtension& args) {
  with_accumulate(args.qkv.dtype, [&](auto a) {
    parallel_blocks(stream, args.qkv.shape[0] * args.layout.heads,
                    [&](std::int64_t block) { extend_head<decltype(a)>(args, block); });
  });
}

const Register registered{attention_extension, Backend::Cpu, extend};

}  // namespace
}  // namespace graft
