#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string_view>

#include "engine/stream.h"

namespace graft::cuda {

class Blas;

/// A CUDA stream of its own (never the default stream), with its own cuBLASLt state and workspace.
/// Capture is thread-local: other threads may keep calling CUDA.
class CudaStream final : public Stream {
 public:
  explicit CudaStream(int device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  [[nodiscard]] Backend backend() const override { return Backend::Cuda; }
  void launch(const Launch& launch) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void zero(void* to, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes, std::string_view name) override;
  void upload(void* device, const void* host, std::size_t bytes, std::string_view name) override;
  void download_async(void* host, const void* device, std::size_t bytes) override;
  void synchronize() override;
  [[nodiscard]] std::unique_ptr<Event> record() override;
  void wait(const Event& event) override;
  void begin_capture() override;
  [[nodiscard]] std::unique_ptr<Graph> end_capture() override;
  void abandon_capture() noexcept override;

  [[nodiscard]] cudaStream_t handle() const { return stream_; }
  [[nodiscard]] int device() const { return device_; }
  /// Created at first use, or when a capture begins: creating it allocates, which a capture cannot.
  [[nodiscard]] Blas& blas();

 private:
  void activate() const;
  void refuse_unless_eager(const char* what, std::string_view name) const;

  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Blas> blas_;
};

/// The CUDA stream behind a graft::Stream of the CUDA backend. Launchers launch on it and do nothing else
/// with it: no allocation, no synchronising.
[[nodiscard]] inline cudaStream_t handle(Stream& stream) { return static_cast<CudaStream&>(stream).handle(); }

}  // namespace graft::cuda
