#pragma once
// Warp-wide tensor-core products, asynchronous copies and fragment loads that attention is built from.
//
// Both kinds of product compute D[16 x 8] += A[16 x k] B[k x 8] with 32 bytes of k: 8 tf32 or 16 bfloat16
// values. With lane = 4 g + t, a lane holds
//   D  d[0], d[1] = (row g, columns 2t, 2t + 1);  d[2], d[3] = (row g + 8, the same columns)
//   A  a[0] = (g, first half of k), a[1] = (g + 8, first half), a[2] = (g, second half), a[3] = (g + 8, second half)
//   B  b[0] = (first half of k, column g), b[1] = (second half, column g)
// where a 16-byte half of k gives lane t its t-th word. ldmatrix hands out words in just this way, so A, and B
// from a matrix stored [column, k], are loaded by the same instructions for both types.

#include <cuda_bf16.h>

#include <cstdint>

namespace graft::cuda::attention {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory in the background; zeros where `inside` is false.
__device__ inline void copy_async_16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0));
}
/// The same for 4 bytes.
__device__ inline void copy_async_4(void* to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 4 : 0));
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's committed groups are unfinished.
template <int kPending>
__device__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8 x 16-byte matrices; lanes 8i to 8i + 7 give the row addresses of matrix i.
__device__ inline void load_matrices(std::uint32_t address, std::uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}
/// The same, each matrix of 8 x 8 two-byte values transposed.
__device__ inline void load_matrices_transposed(std::uint32_t address, std::uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}
__device__ inline std::uint32_t load_word(std::uint32_t address) {
  std::uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}

/// This thread's warp in its block. The broadcast tells the compiler that all lanes agree, so that branches on it do
/// not count as taking lanes apart.
__device__ inline int warp_index() { return __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x >> 5), 0); }

__device__ inline float round_to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

/// 2^x; subnormal results become zero.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// float32 storage, factors rounded to tf32.
struct Tf32 {
  using Storage = float;
  static constexpr int kDepth = 8;
  static constexpr bool kRounds = true;

  __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  __device__ static float rounded(float x) { return round_to_tf32(x); }
};

/// bfloat16 storage and factors.
struct Bf16 {
  using Storage = __nv_bfloat16;
  static constexpr int kDepth = 16;
  static constexpr bool kRounds = false;

  __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  __device__ static float rounded(float x) { return x; }
  __device__ static std::uint32_t pack(float low, float high) {
    std::uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
};

}  // namespace graft::cuda::attention
