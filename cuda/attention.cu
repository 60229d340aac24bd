#include <cuda_runtime.h>

#include "cuda/attention_params.h"
#include "cuda/check.h"
#include "cuda/stream.h"
#include "engine/error.h"
#include "ops/attention.h"

namespace graft::cuda {
namespace {

using attention::Params;

constexpr int kMaxTensorHeadDim = 128;

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

Params resolve(const ConstView& qkv, const ConstView& y, const AttentionLayout& layout, double scale) {
  Params p{};
  p.qkv = qkv.data;
  p.y = const_cast<void*>(y.data);  // backward only reads it
  p.tokens = static_cast<int>(qkv.shape[1]);
  p.heads = layout.heads;
  p.head_dim = layout.head_dim;
  p.row = static_cast<int>(qkv.shape[2]);
  p.head_stride = static_cast<int>(layout.head_stride);
  p.q_offset = static_cast<int>(layout.q_offset);
  p.k_offset = static_cast<int>(layout.k_offset);
  p.v_offset = static_cast<int>(layout.v_offset);
  p.scale = static_cast<float>(scale);
  // heads * head_dim, the row of y, is a multiple where head_dim is.
  const int vector = static_cast<int>(16 / size_of(qkv.dtype));
  p.vector = aligned(qkv.data) && aligned(y.data) && p.head_dim % vector == 0 && p.row % vector == 0 &&
             p.head_stride % vector == 0 && p.q_offset % vector == 0 && p.k_offset % vector == 0 &&
             p.v_offset % vector == 0;
  return p;
}

enum class Path : std::uint8_t { Plain, Tf32, Bf16 };

Path path_for(const ConstView& qkv, const AttentionLayout& layout, Precision precision) {
  if (layout.head_dim > kMaxTensorHeadDim) return Path::Plain;
  if (qkv.dtype == DType::BF16) return Path::Bf16;
  return precision == Precision::Tf32 ? Path::Tf32 : Path::Plain;
}

void launch_forward(Stream& stream, const AttentionForward& args) {
  Params p = resolve(args.qkv, args.y, args.layout, args.scale);
  p.lse = args.lse.as<float>();
  const int batch = static_cast<int>(args.qkv.shape[0]);
  const Path path = path_for(args.qkv, args.layout, args.precision);
  if (path == Path::Tf32 && attention::forward_tf32(handle(stream), p, batch)) return;
  if (path == Path::Bf16 && attention::forward_bf16(handle(stream), p, batch)) return;
  attention::forward_plain(handle(stream), p, batch, args.qkv.dtype == DType::BF16);
}

void launch_backward(Stream& stream, const AttentionBackward& args) {
  const View& dqkv = args.dqkv.view;
  if (dqkv.dtype != args.qkv.dtype && dqkv.dtype != DType::F32) {
    throw ArgumentError(std::string("attention_backward: the gradient of ") + name_of(args.qkv.dtype) + " qkv is " +
                        name_of(dqkv.dtype) + ", expected the same or float32");
  }
  Params p = resolve(args.qkv, args.y, args.layout, args.scale);
  p.dy = args.dy.data;
  p.lse = const_cast<float*>(args.lse.as<float>());
  p.delta = args.delta.as<float>();
  p.dqkv = dqkv.data;
  p.vector = p.vector && aligned(p.dy) && aligned(p.dqkv);
  p.accumulate = args.dqkv.accumulate;
  p.wide = dqkv.dtype != args.qkv.dtype;
  const int batch = static_cast<int>(args.qkv.shape[0]);
  if (!p.accumulate && 3 * args.layout.width() < p.row) {  // padding columns
    const auto bytes = static_cast<std::size_t>(dqkv.shape.elements()) * size_of(dqkv.dtype);
    check(cudaMemsetAsync(dqkv.data, 0, bytes, handle(stream)));
  }
  const Path path = path_for(args.qkv, args.layout, args.precision);
  if (path == Path::Tf32 && attention::backward_tf32(handle(stream), p, batch)) return;
  if (path == Path::Bf16 && attention::backward_bf16(handle(stream), p, batch)) return;
  attention::backward_plain(handle(stream), p, batch, args.qkv.dtype == DType::BF16);
}

const Register forward{attention_forward, Backend::Cuda, launch_forward};
const Register backward{attention_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
