#include "ops/embedding.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "bench/support/bench.h"
#include "engine/philox.h"
#include "engine/stream.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t batch, tokens, vocabulary, width;
};
// a formal language, a retrieval task, and the vocabulary of a language model
constexpr Size kSizes[] = {{16, 704, 104, 768}, {64, 110, 2048, 1024}, {8, 1024, 50280, 768}};
constexpr Size kPositionSizes[] = {{64, 82, 82, 256}, {64, 202, 202, 256}, {16, 1024, 1024, 768}};

Tensor random_ids(const Context& ctx, const Size& size) {
  std::vector<std::int32_t> host(static_cast<std::size_t>(size.batch * size.tokens));
  const Draw draw{1, RandomDomain::Bootstrap, 0, 0};
  for (std::size_t i = 0; i < host.size(); ++i) {
    host[i] = static_cast<std::int32_t>(
        draw.below(static_cast<std::uint32_t>(size.vocabulary), 0, static_cast<std::uint32_t>(i)));
  }
  Tensor ids = ctx.empty_run({size.batch, size.tokens}, DType::I32, "ids");
  ctx.stream->upload(ids.mutable_view().data, host.data(), ids.bytes(), "ids");
  return ids;
}

Setup embedding_work(Size size, bool backward) {
  return [=](const Context& ctx) -> Work {
    const Tensor ids = random_ids(ctx, size);
    const Shape rows{size.batch, size.tokens, size.width};
    if (!backward) {
      const Tensor table = random_tensor(ctx, {size.vocabulary, size.width}, ctx.compute_dtype(), 1);
      const Tensor y = ctx.empty_run(rows, ctx.stream_dtype(), "y");
      const auto run = [=](const Context& c) {
        embedding_forward(c, {ids.view(), table.view(), {}, y.mutable_view()});
      };
      const double read =
          static_cast<double>(ids.elements() * size.width) * static_cast<double>(size_of(table.dtype()));
      return {run, std::min(read, static_cast<double>(table.bytes())) + static_cast<double>(y.bytes()), 0};
    }
    const Tensor dy = random_tensor(ctx, rows, ctx.stream_dtype(), 2);
    const Tensor dtable = ctx.empty_run({size.vocabulary, size.width}, ctx.stream_dtype(), "dtable");
    const std::int64_t segments = embedding_segments(ids.elements(), size.vocabulary);
    const Tensor partial =
        segments > 1 ? ctx.empty_run({segments, size.vocabulary, size.width}, ctx.stream_dtype(), "partial") : Tensor();
    const auto run = [=](const Context& c) {
      embedding_backward(c, {dy.view(), ids.view(), partial ? partial.mutable_view() : View{},
                             GradTarget{dtable.mutable_view(), false}});
    };
    return {run, static_cast<double>(dy.bytes() + dtable.bytes() + ids.bytes()), 0};
  };
}

Setup positions_work(Size size, bool backward) {
  return [=](const Context& ctx) -> Work {
    const DType compute = ctx.compute_dtype();
    const DType stream = ctx.stream_dtype();
    const Shape rows{size.batch, size.tokens, size.width};
    const Tensor x = random_tensor(ctx, rows, compute, 1);
    const Tensor table = random_tensor(ctx, {size.vocabulary, size.width}, compute, 2);
    const Tensor y = random_tensor(ctx, rows, stream, 3);
    const Tensor dtable = ctx.empty_run(table.shape(), stream, "dtable");
    const bool copies = compute != stream;  // else the gradient is passed on without a copy
    const auto run = [=](const Context& c) {
      if (backward) {
        add_positions_backward(c, {y.view(), copies ? GradTarget{x.mutable_view(), false} : GradTarget{},
                                   GradTarget{dtable.mutable_view(), false}});
      } else {
        add_positions_forward(c, {x.view(), table.view(), y.mutable_view()});
      }
    };
    const double x_bytes = backward && !copies ? 0 : static_cast<double>(x.bytes());
    return {run, x_bytes + static_cast<double>(y.bytes() + (backward ? dtable.bytes() : table.bytes())), 0};
  };
}

const bool registered = [] {
  const std::vector<Precision> precisions{Precision::Fp32, Precision::Bf16};
  for (const bool backward : {false, true}) {
    const char* const direction = backward ? "backward" : "forward";
    for (const Size& s : kSizes) {
      Add(fmt::format("embedding/{}/B{}_T{}_V{}_D{}", direction, s.batch, s.tokens, s.vocabulary, s.width), precisions,
          embedding_work(s, backward));
    }
    for (const Size& s : kPositionSizes) {
      Add(fmt::format("add_positions/{}/B{}_T{}_D{}", direction, s.batch, s.tokens, s.width), precisions,
          positions_work(s, backward));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
