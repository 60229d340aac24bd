#include "cuda/blas.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "cuda/check.h"
#include "cuda/stream.h"
#include "engine/error.h"

// cuBLASLt thinks in columns, graft in rows. The memory of a row-major [r, c] matrix is that of a column-major
// [c, r] matrix, its transpose. So instead of d = op(a) op(b) we ask for d^T = op(b)^T op(a)^T:
//
//   the library's   rows    columns   A: ours          B: ours          vector along its rows of D
//                   n       m         b, same op       a, same op       vector[n], along our columns
//
// "Same op" holds because the transposition of the layout and that of the product cancel: b stored [k, n] is the
// library's [n, k], needed as [n, k]: no transpose; b stored [n, k] and transposed is the library's [k, n],
// needed as [n, k]: transpose. Likewise BGRADA sums our b and BGRADB our a.

namespace graft::cuda {
namespace {

constexpr int kFullAlignment = 16;  // bytes; what the widest loads of the library's kernels need

std::uint8_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address == 0) return kFullAlignment;
  return static_cast<std::uint8_t>(std::min<std::uintptr_t>(kFullAlignment, address & (~address + 1)));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return CUDA_R_32F;
    case DType::BF16:
      return CUDA_R_16BF;
    default:
      throw DeviceError(std::string("gemm: an operand is ") + name_of(dtype) + ", expected float32 or bfloat16");
  }
}

cublasComputeType_t compute_type(const GemmProblem& problem) {
  if (problem.precision == Precision::Tf32) return CUBLAS_COMPUTE_32F_FAST_TF32;
  return CUBLAS_COMPUTE_32F;
}

const char* name_of_epilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::None:
      return "plain";
    case Epilogue::Bias:
      return "bias";
    case Epilogue::Gelu:
      return "gelu";
    case Epilogue::GeluAux:
      return "gelu_aux";
    case Epilogue::GeluGradient:
      return "gelu_gradient";
    case Epilogue::GeluGradientSums:
      return "gelu_gradient_sums";
    case Epilogue::RowSumsOfA:
      return "row_sums_of_a";
    case Epilogue::ColumnSumsOfB:
      return "column_sums_of_b";
  }
  return "?";
}

cublasLtEpilogue_t epilogue_of(const GemmProblem& problem) {
  switch (problem.epilogue) {
    case Epilogue::None:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::Bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::Gelu:
      return problem.has_vector ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    case Epilogue::GeluAux:
      return problem.has_vector ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::GeluGradient:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::GeluGradientSums:
      return CUBLASLT_EPILOGUE_DGELU_BGRAD;
    case Epilogue::RowSumsOfA:
      return CUBLASLT_EPILOGUE_BGRADB;  // the library's B is our a
    case Epilogue::ColumnSumsOfB:
      return CUBLASLT_EPILOGUE_BGRADA;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

bool uses_aux(Epilogue epilogue) {
  return epilogue == Epilogue::GeluAux || epilogue == Epilogue::GeluGradient || epilogue == Epilogue::GeluGradientSums;
}

/// What the library documents as impossible, without asking it.
bool ruled_out(const GemmProblem& problem) {
  if (problem.has_vector && problem.vector_dtype != problem.d_dtype) return true;
  return uses_aux(problem.epilogue) && problem.aux_stride % 8 != 0;
}

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof(value)));
}
template <class T>
void set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const T& value) {
  check(cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof(value)));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

/// `rows` and `columns` as stored, row-major.
void describe(cublasLtMatrixLayoutOpaque_t& layout, DType dtype, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, int batch, std::int64_t batch_stride) {
  check(cublasLtMatrixLayoutInit(&layout, data_type(dtype), static_cast<std::uint64_t>(columns),
                                 static_cast<std::uint64_t>(rows), stride));
  if (batch > 1) {
    set(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch));
    set(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride);
  }
}

/// An address with no other property than its alignment: the heuristic looks at nothing else.
void* address_aligned_to(std::uint8_t alignment) { return reinterpret_cast<void*>(std::uintptr_t{alignment}); }

}  // namespace

void check(cublasStatus_t status, std::source_location where) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw_device_error(std::string("cuBLAS: ") + cublasLtGetStatusString(status), where);
}

GemmProblem::GemmProblem(const Gemm& gemm)
    : m(gemm.m),
      n(gemm.n),
      k(gemm.k),
      a_stride(gemm.a.stride),
      b_stride(gemm.b.stride),
      d_stride(gemm.d_stride),
      aux_stride(uses_aux(gemm.epilogue) ? gemm.aux_stride : 0),
      a_batch_stride(gemm.batch > 1 ? gemm.a.batch_stride : 0),
      b_batch_stride(gemm.batch > 1 ? gemm.b.batch_stride : 0),
      d_batch_stride(gemm.batch > 1 ? gemm.d_batch_stride : 0),
      batch(gemm.batch),
      a_dtype(gemm.a.dtype),
      b_dtype(gemm.b.dtype),
      d_dtype(gemm.d_dtype),
      vector_dtype(gemm.vector == nullptr ? gemm.d_dtype : gemm.vector_dtype),
      a_transposed(gemm.a.transposed),
      b_transposed(gemm.b.transposed),
      has_vector(gemm.vector != nullptr),
      precision(gemm.precision),
      epilogue(gemm.epilogue),
      a_alignment(alignment_of(gemm.a.data)),
      b_alignment(alignment_of(gemm.b.data)),
      d_alignment(alignment_of(gemm.d)),
      vector_alignment(alignment_of(gemm.vector)),
      aux_alignment(alignment_of(gemm.aux)) {}

std::string GemmProblem::str() const {
  const auto operand = [](const char* name, DType dtype, std::int64_t stride, bool transposed) {
    return fmt::format("{}:{}:{}{}", name, dtype == DType::BF16 ? "bf16" : "f32", stride, transposed ? "T" : "");
  };
  return fmt::format("m{} n{} k{} {} {} {} batch{} {} {}{} align{}", m, n, k,
                     operand("a", a_dtype, a_stride, a_transposed), operand("b", b_dtype, b_stride, b_transposed),
                     operand("d", d_dtype, d_stride, false), batch, name_of(precision), name_of_epilogue(epilogue),
                     has_vector ? "+vector" : "",
                     std::min({a_alignment, b_alignment, d_alignment, vector_alignment, aux_alignment}));
}

struct Blas::Plan {
  explicit Plan(const GemmProblem& p) {
    check(cublasLtMatmulDescInit(&operation, compute_type(p), CUDA_R_32F));
    set(&operation, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(&operation, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(&operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p));
    if (p.has_vector) set(&operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, address_aligned_to(p.vector_alignment));
    if (uses_aux(p.epilogue)) {
      set(&operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, address_aligned_to(p.aux_alignment));
      set(&operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.aux_stride);
    }
    describe(left, p.b_dtype, p.b_transposed ? p.n : p.k, p.b_transposed ? p.k : p.n, p.b_stride, p.batch,
             p.b_batch_stride);
    describe(right, p.a_dtype, p.a_transposed ? p.k : p.m, p.a_transposed ? p.m : p.k, p.a_stride, p.batch,
             p.a_batch_stride);
    describe(result, p.d_dtype, p.m, p.n, p.d_stride, p.batch, p.d_batch_stride);
  }

  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t left{};    // the library's A, our b
  cublasLtMatrixLayoutOpaque_t right{};   // the library's B, our a
  cublasLtMatrixLayoutOpaque_t result{};  // C and D
  cublasLtMatmulAlgo_t algorithm{};
  bool usable = false;
  bool ran = false;
};

Blas::Blas() {
  check(cublasLtCreate(&handle_));
  const cudaError_t status = cudaMalloc(&workspace_, kWorkspaceBytes);
  if (status != cudaSuccess) {
    cublasLtDestroy(handle_);
    check(status);
  }
}

Blas::~Blas() {
  cudaFree(workspace_);
  cublasLtDestroy(handle_);
}

std::vector<cublasLtMatmulHeuristicResult_t> Blas::proposals(const GemmProblem& problem, int count) const {
  if (ruled_out(problem)) return {};
  Plan plan(problem);
  cublasLtMatmulPreferenceOpaque_t preference{};
  check(cublasLtMatmulPreferenceInit(&preference));
  set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
  set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{problem.b_alignment});
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{problem.a_alignment});
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{problem.d_alignment});
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{problem.d_alignment});
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<std::size_t>(count));
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, &plan.operation, &plan.left, &plan.right, &plan.result, &plan.result,
                                     &preference, count, results.data(), &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return {};
  check(status);
  results.resize(static_cast<std::size_t>(found));
  std::erase_if(results, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
  return results;
}

void Blas::choose_algorithm(const GemmProblem& problem, Plan& plan) const {
  if (const auto tuned = tuned_.find(problem); tuned != tuned_.end()) {
    plan.algorithm = tuned->second;
    plan.usable = true;
    return;
  }
  const auto found = proposals(problem, 1);
  if (found.empty()) return;
  plan.algorithm = found.front().algo;
  plan.usable = true;
}

void Blas::set_algorithm(const GemmProblem& problem, const cublasLtMatmulAlgo_t& algorithm) {
  tuned_[problem] = algorithm;
  plans_.erase(problem);
}

Blas::Plan& Blas::plan_for(const GemmProblem& problem) {
  std::unique_ptr<Plan>& plan = plans_[problem];
  if (plan == nullptr) {
    auto created = std::make_unique<Plan>(problem);
    choose_algorithm(problem, *created);
    plan = std::move(created);
  }
  return *plan;
}

bool Blas::try_gemm(cudaStream_t stream, const Gemm& gemm) {
  Plan& plan = plan_for(GemmProblem(gemm));
  if (!plan.usable) return false;
  if (gemm.vector != nullptr) set(&plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, gemm.vector);
  if (uses_aux(gemm.epilogue)) set(&plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, gemm.aux);
  const cublasStatus_t status = cublasLtMatmul(handle_, &plan.operation, &gemm.alpha, gemm.b.data, &plan.left,
                                               gemm.a.data, &plan.right, &gemm.beta, gemm.d, &plan.result, gemm.d,
                                               &plan.result, &plan.algorithm, workspace_, kWorkspaceBytes, stream);
  const bool refused = status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
  if (refused && !plan.ran) {  // a heuristic answer that the library then does not take
    plan.usable = false;
    return false;
  }
  check(status);
  plan.ran = true;
  return true;
}

Blas& blas(Stream& stream) { return static_cast<CudaStream&>(stream).blas(); }

bool try_gemm(Stream& stream, const Gemm& gemm) { return blas(stream).try_gemm(handle(stream), gemm); }

void gemm(Stream& stream, const Gemm& gemm) {
  if (!try_gemm(stream, gemm)) {
    throw DeviceError("gemm: cuBLASLt has no algorithm for " + GemmProblem(gemm).str());
  }
}

}  // namespace graft::cuda
