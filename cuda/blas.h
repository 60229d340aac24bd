#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "engine/device.h"
#include "engine/dtype.h"
#include "engine/stream.h"

namespace graft::cuda {

/// Throws DeviceError with cuBLAS's message unless `status` is success.
void check(cublasStatus_t status, std::source_location where = std::source_location::current());

/// One operand of a product as it lies in memory: row-major, `stride` elements from row to row.
struct Matrix {
  const void* data = nullptr;
  DType dtype = DType::F32;
  std::int64_t stride = 0;
  bool transposed = false;        // the product uses the transpose of what is stored
  std::int64_t batch_stride = 0;  // elements from one matrix of a batch to the next; 0: the same for all
};

/// What is done with the product before it is stored. Vectors have the dtype of d.
enum class Epilogue : std::uint8_t {
  None,
  Bias,              // d += vector[n]
  Gelu,              // d = gelu(product [+ vector]), tanh form
  GeluAux,           // the same, and the argument of gelu goes to aux
  GeluGradient,      // d = product * gelu'(aux)
  GeluGradientSums,  // the same, and vector[n] = the column sums of d
  RowSumsOfA,        // vector[m] = sum over k of op(a)[m, k]
  ColumnSumsOfB,     // vector[n] = sum over k of op(b)[k, n]
};

/// d[m, n] = alpha * op(a)[m, k] op(b)[k, n] + beta * d, everything row-major.
///   fp32  float32 operands, float32 products (no tf32)
///   tf32  float32 operands, rounded to tf32; sums are float32
///   bf16  bfloat16 operands, float32 sums, d float32 or bfloat16
struct Gemm {
  std::int64_t m = 0, n = 0, k = 0;
  Matrix a, b;
  void* d = nullptr;
  DType d_dtype = DType::F32;
  std::int64_t d_stride = 0;
  std::int64_t d_batch_stride = 0;
  int batch = 1;
  float alpha = 1.F, beta = 0.F;
  Precision precision = Precision::Fp32;
  Epilogue epilogue = Epilogue::None;
  void* vector = nullptr;  // bias (read) or sums (written); Gelu and GeluAux: may be empty
  DType vector_dtype = DType::F32;
  void* aux = nullptr;  // [m, n] in d's dtype
  std::int64_t aux_stride = 0;
};

/// A product without its addresses: what an algorithm is chosen by. Addresses enter by their alignment alone
/// (16 bytes or less), so the choice does not depend on where the planner puts a tensor.
struct GemmProblem {
  explicit GemmProblem(const Gemm& gemm);
  /// "m5248 n256 k256 a:bf16:256 b:bf16:256T d:bf16:256 batch1 bf16 gelu_aux+vector align16": the key of a tuned table.
  [[nodiscard]] std::string str() const;
  friend auto operator<=>(const GemmProblem&, const GemmProblem&) = default;

  std::int64_t m, n, k, a_stride, b_stride, d_stride, aux_stride;
  std::int64_t a_batch_stride, b_batch_stride, d_batch_stride;
  int batch;
  DType a_dtype, b_dtype, d_dtype, vector_dtype;
  bool a_transposed, b_transposed, has_vector;
  Precision precision;
  Epilogue epilogue;
  std::uint8_t a_alignment, b_alignment, d_alignment, vector_alignment, aux_alignment;
};

/// cuBLASLt with a workspace of its own. Belongs to one stream, so that two streams never share a workspace:
/// results are then the same in every run. An algorithm is chosen at the first use of a problem and kept, so
/// that eager and captured steps use the same one: from the tuned table if it has the problem, else the
/// library's first heuristic answer; nothing is timed. Split-k algorithms must keep their partial sums in
/// float32 and add them in a pass of their own: no sums in the output's precision, no order left to chance.
class Blas {
 public:
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20U;

  Blas();
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// Launches the product. Returns false, having launched nothing, where the library has no algorithm for it (then it
  /// never has one for this problem). Throws DeviceError on anything else that goes wrong.
  bool try_gemm(cudaStream_t stream, const Gemm& gemm);

  /// Puts a tuned algorithm in the place of the heuristic answer. Call it before the problem's first use.
  void set_algorithm(const GemmProblem& problem, const cublasLtMatmulAlgo_t& algorithm);
  /// The library's proposals, best guess first, for a tuner to time.
  [[nodiscard]] std::vector<cublasLtMatmulHeuristicResult_t> proposals(const GemmProblem& problem, int count) const;

 private:
  struct Plan;
  Plan& plan_for(const GemmProblem& problem);
  void choose_algorithm(const GemmProblem& problem, Plan& plan) const;

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<GemmProblem, std::unique_ptr<Plan>> plans_;
  std::map<GemmProblem, cublasLtMatmulAlgo_t> tuned_;
};

/// The BLAS state of a stream of the CUDA backend.
[[nodiscard]] Blas& blas(Stream& stream);

/// Launches a product on the stream. Throws DeviceError naming the problem if the library has no algorithm.
void gemm(Stream& stream, const Gemm& gemm);
/// The same, but returns false in that case: the caller then does the epilogue's work in kernels of its own.
[[nodiscard]] bool try_gemm(Stream& stream, const Gemm& gemm);

}  // namespace graft::cuda
