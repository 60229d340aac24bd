#include "cuda/stream.h"

#include <string>
#include <utility>
#include <vector>

#include "cuda/blas.h"
#include "cuda/check.h"
#include "engine/error.h"
#include "engine/require.h"

namespace graft::cuda {
namespace {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(cudaStream_t stream) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    const cudaError_t status = cudaEventRecord(event_, stream);
    if (status != cudaSuccess) {
      cudaEventDestroy(event_);
      check(status);
    }
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  [[nodiscard]] bool finished() const override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());  // not an error: the next check must not see it
      return false;
    }
    check(status);
    return true;
  }
  void synchronize() const override { check(cudaEventSynchronize(event_)); }
  [[nodiscard]] cudaEvent_t handle() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Nodes of a captured graph that do work, as opposed to those that only order it.
std::size_t count_launches(cudaGraph_t graph) {
  std::size_t count = 0;
  check(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  if (count != 0) check(cudaGraphGetNodes(graph, nodes.data(), &count));
  std::size_t launches = 0;
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    check(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeKernel || type == cudaGraphNodeTypeMemcpy || type == cudaGraphNodeTypeMemset) {
      ++launches;
    }
  }
  return launches;
}

class CudaGraph final : public Graph {
 public:
  /// Takes over `graph`.
  CudaGraph(cudaGraph_t graph, cudaStream_t stream) {
    try {
      launches_ = count_launches(graph);
      check(cudaGraphInstantiate(&executable_, graph, 0));
      check(cudaGraphUpload(executable_, stream));  // so that the first replay costs what later ones do
    } catch (...) {
      if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
      cudaGraphDestroy(graph);
      throw;
    }
    cudaGraphDestroy(graph);
  }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void replay(Stream& stream) override {
    require(stream.mode() == Stream::Mode::Eager, "replay: the stream is capturing or planning, expected neither");
    check(cudaGraphLaunch(executable_, cuda::handle(stream)));
  }
  [[nodiscard]] std::size_t launches() const override { return launches_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
  std::size_t launches_ = 0;
};

}  // namespace

CudaStream::CudaStream(int device) : device_(device) {
  activate();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaStream::~CudaStream() {
  if (mode_ == Mode::Capturing) abandon_capture();
  blas_.reset();
  cudaStreamDestroy(stream_);
}

/// The current device is a property of the calling thread, and another thread may drive this stream.
void CudaStream::activate() const { check(cudaSetDevice(device_)); }

Blas& CudaStream::blas() {
  if (blas_ == nullptr) {
    activate();
    blas_ = std::make_unique<Blas>();
  }
  return *blas_;
}

void CudaStream::launch(const Launch& launch) {
  if (mode_ == Mode::Planning) return;
  activate();
  try {
    launch.invoke(*this, launch.function, launch.args);
  } catch (const DeviceError& error) {
    throw DeviceError(std::string(launch.name) + ": " + error.what());
  }
  ++launches_;
}

void CudaStream::copy(void* to, const void* from, std::size_t bytes) {
  if (mode_ == Mode::Planning || bytes == 0 || !only_.empty()) return;
  activate();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  ++launches_;
}

void CudaStream::zero(void* to, std::size_t bytes) {
  if (mode_ == Mode::Planning || bytes == 0 || !only_.empty()) return;
  activate();
  check(cudaMemsetAsync(to, 0, bytes, stream_));
  ++launches_;
}

void CudaStream::refuse_unless_eager(const char* what, std::string_view name) const {
  require(mode_ == Mode::Eager, "{}: {} was touched by the host while a step is being {}; its values do not exist yet",
          what, name, mode_ == Mode::Capturing ? "captured" : "planned");
}

void CudaStream::download(void* host, const void* device, std::size_t bytes, std::string_view name) {
  refuse_unless_eager("download", name);
  if (bytes == 0) return;
  activate();
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  check(cudaStreamSynchronize(stream_));
}

void CudaStream::upload(void* device, const void* host, std::size_t bytes, std::string_view name) {
  refuse_unless_eager("upload", name);
  if (bytes == 0) return;
  activate();
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
  check(cudaStreamSynchronize(stream_));
}

void CudaStream::download_async(void* host, const void* device, std::size_t bytes) {
  refuse_unless_eager("download", "an asynchronous copy");
  if (bytes == 0) return;
  activate();
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
}

void CudaStream::synchronize() {
  if (mode_ == Mode::Planning) return;
  require(mode_ == Mode::Eager, "synchronize: the stream is capturing; nothing runs that could be waited for");
  check(cudaStreamSynchronize(stream_));
}

std::unique_ptr<Event> CudaStream::record() {
  activate();
  return std::make_unique<CudaEvent>(stream_);
}

void CudaStream::wait(const Event& event) {
  if (mode_ == Mode::Planning) return;
  activate();
  check(cudaStreamWaitEvent(stream_, static_cast<const CudaEvent&>(event).handle(), 0));
}

void CudaStream::begin_capture() {
  require(mode_ == Mode::Eager, "capture: the stream is already capturing or planning");
  static_cast<void>(blas());
  activate();
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  mode_ = Mode::Capturing;
}

std::unique_ptr<Graph> CudaStream::end_capture() {
  require(mode_ == Mode::Capturing, "capture: the stream is not capturing");
  activate();
  cudaGraph_t graph = nullptr;
  mode_ = Mode::Eager;  // whatever happens: the driver ends the capture in any case
  check(cudaStreamEndCapture(stream_, &graph));
  return std::make_unique<CudaGraph>(graph, stream_);
}

void CudaStream::abandon_capture() noexcept {
  if (mode_ != Mode::Capturing) return;
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream_, &graph));
  if (graph != nullptr) cudaGraphDestroy(graph);
  static_cast<void>(cudaGetLastError());
  mode_ = Mode::Eager;
}

}  // namespace graft::cuda
