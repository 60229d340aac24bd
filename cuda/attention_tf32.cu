#include "cuda/attention_backward.cuh"

namespace graft::cuda::attention {
namespace {

/// Calls launch.operator()<head dim>() for the smallest compiled head dim that holds the given one.
template <class Launch>
bool with_head_dim(int head_dim, Launch launch) {
  if (head_dim <= 16) return launch.template operator()<16>();
  if (head_dim <= 32) return launch.template operator()<32>();
  if (head_dim <= 64) return launch.template operator()<64>();
  if (head_dim <= 96) return launch.template operator()<96>();
  return launch.template operator()<128>();
}

}  // namespace

bool forward_tf32(cudaStream_t stream, Params p, int batch) {
  return with_head_dim(p.head_dim, [&]<int kHeadDim>() { return launch_forward<Tf32, kHeadDim>(stream, p, batch); });
}

bool backward_tf32(cudaStream_t stream, Params p, int batch) {
  return with_head_dim(p.head_dim, [&]<int kHeadDim>() { return launch_backward<Tf32, kHeadDim>(stream, p, batch); });
}

}  // namespace graft::cuda::attention
