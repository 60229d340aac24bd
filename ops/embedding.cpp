#include "ops/embedding.h"

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/decode_checks.h"

namespace graft {
namespace {

void check_table(const Context& ctx, const char* op, const char* what, const Tensor& table) {
  require(table.shape().rank() == 2, "{}: {} is {}, expected [rows, D]", op, what, table.shape().str());
  require(table.dtype() == ctx.stream_dtype() || table.dtype() == ctx.compute_dtype(),
          "{}: {} is {}, expected {} or {} in {}", op, what, name_of(table.dtype()), name_of(ctx.stream_dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
}

void check_positions(const Context& ctx, const char* op, const Tensor& table, std::int64_t tokens, std::int64_t width) {
  check_table(ctx, op, "the position table", table);
  require(table.shape()[1] == width, "{}: the position table is {}, expected [rows, {}]", op, table.shape().str(),
          width);
  require(table.shape()[0] >= tokens, "{}: {} tokens, but the position table has {} rows", op, tokens,
          table.shape()[0]);
}

void check_start(const Context& ctx, const char* op, const Tensor& start) {
  if (!start) return;
  check_inference(ctx, op);
  check_token_count(op, "start", start);
}

}  // namespace

Tensor embedding(const Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions,
                 const Tensor& start) {
  require(ids.dtype() == DType::I32, "embedding: ids are {}, expected int32", name_of(ids.dtype()));
  require(ids.shape().rank() == 1 || ids.shape().rank() == 2, "embedding: ids are {}, expected [T] or [B, T]",
          ids.shape().str());
  check_table(ctx, "embedding", "the table", table);
  const std::int64_t batch = ids.shape().rows();
  const std::int64_t tokens = ids.shape().columns();
  const std::int64_t width = table.shape()[1];
  if (positions) check_positions(ctx, "embedding", positions, tokens, width);
  require(!start || positions, "embedding: a start is given, expected positions that it moves along");
  check_start(ctx, "embedding", start);

  const Shape shape = ids.shape().rank() == 1 ? Shape{tokens, width} : Shape{batch, tokens, width};
  Tensor y = ctx.empty(shape, ctx.stream_dtype(), "embedding");
  embedding_forward(ctx, {ids.view(), table.view(), view_or_null(positions), y.mutable_view(), view_or_null(start)});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record(
      "embedding", {table, positions}, y,
      [ids, batch, tokens, table_ref = GradRef(table), positions_ref = GradRef(positions)](
          const Context& c, Grads& grads, const GradRef& dy) {
        const std::int64_t vocabulary = table_ref.shape[0];
        const std::int64_t columns = table_ref.shape[1];
        if (const GradTarget dtable = grads.into(table_ref)) {
          const std::int64_t segments = embedding_segments(ids.elements(), vocabulary);
          Tensor partial;
          if (segments > 1) {
            partial = c.empty({segments, vocabulary, columns}, c.stream_dtype(), "embedding partial sums");
          }
          embedding_backward(c, {grads.of(dy), ids.view(), partial ? partial.mutable_view() : View{}, dtable});
        }
        if (const GradTarget dpositions = grads.into(positions_ref)) {
          ConstView gradient = grads.of(dy);
          gradient.shape = {batch, tokens, columns};
          add_positions_backward(c, {gradient, {}, dpositions});
        }
      });
  return y;
}

Tensor add_positions(const Context& ctx, const Tensor& x, const Tensor& table, const Tensor& start) {
  require(x.shape().rank() == 3, "add_positions: x is {}, expected [B, T, D]", x.shape().str());
  require(x.dtype() == ctx.stream_dtype() || x.dtype() == ctx.compute_dtype(),
          "add_positions: x is {}, expected {} or {} in {}", name_of(x.dtype()), name_of(ctx.stream_dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
  check_positions(ctx, "add_positions", table, x.shape()[1], x.shape()[2]);
  check_start(ctx, "add_positions", start);
  Tensor y = ctx.empty(x.shape(), ctx.stream_dtype(), "add_positions");
  add_positions_forward(ctx, {x.view(), table.view(), y.mutable_view(), view_or_null(start)});
  if (ctx.tape == nullptr) return y;
  ctx.tape->record("add_positions", {x, table}, y,
                   [x_ref = GradRef(x), table_ref = GradRef(table)](const Context& c, Grads& grads, const GradRef& dy) {
                     GradTarget dx;
                     if (x_ref.dtype != dy.dtype) dx = grads.into(x_ref);
                     const GradTarget dtable = grads.into(table_ref);
                     if (dx || dtable) add_positions_backward(c, {grads.of(dy), dx, dtable});
                     if (x_ref.dtype == dy.dtype) grads.pass(x_ref, grads.tensor(dy));
                   });
  return y;
}

}  // namespace graft
