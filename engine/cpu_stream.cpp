#include "engine/cpu_stream.h"

#include <cstring>
#include <utility>
#include <vector>

#include "engine/require.h"
#include "engine/thread_pool.h"

namespace graft {
namespace {

struct CopyArgs {
  void* to;
  const void* from;
  std::size_t bytes;
};
struct ZeroArgs {
  void* to;
  std::size_t bytes;
};

using CopyFunction = void (*)(Stream&, const CopyArgs&);
using ZeroFunction = void (*)(Stream&, const ZeroArgs&);

void copy_bytes(Stream&, const CopyArgs& args) {
  if (args.bytes != 0) std::memcpy(args.to, args.from, args.bytes);
}
void zero_bytes(Stream&, const ZeroArgs& args) {
  if (args.bytes != 0) std::memset(args.to, 0, args.bytes);
}

template <class Args>
void invoke(Stream& stream, void (*function)(), const void* args) {
  reinterpret_cast<void (*)(Stream&, const Args&)>(function)(stream, *static_cast<const Args*>(args));
}

class FinishedEvent final : public Event {
 public:
  [[nodiscard]] bool finished() const override { return true; }
  void synchronize() const override {}
};

struct Record {
  void (*invoke)(Stream&, void (*)(), const void*);
  void (*function)();
  std::size_t offset;  // of the argument block
};

class CpuGraph final : public Graph {
 public:
  CpuGraph(std::vector<Record> records, std::vector<std::max_align_t> arguments)
      : records_(std::move(records)), arguments_(std::move(arguments)) {}

  void replay(Stream& stream) override {
    const auto* arguments = reinterpret_cast<const std::byte*>(arguments_.data());
    for (const Record& record : records_) record.invoke(stream, record.function, arguments + record.offset);
  }
  [[nodiscard]] std::size_t launches() const override { return records_.size(); }

 private:
  std::vector<Record> records_;
  std::vector<std::max_align_t> arguments_;
};

}  // namespace

class CpuStream::Recording {
 public:
  void add(const Launch& launch) {
    const std::size_t units = (launch.arg_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
    const std::size_t first = arguments_.size();
    arguments_.resize(first + units);
    std::memcpy(&arguments_[first], launch.args, launch.arg_bytes);
    records_.push_back({launch.invoke, launch.function, first * sizeof(std::max_align_t)});
  }
  std::unique_ptr<Graph> finish() { return std::make_unique<CpuGraph>(std::move(records_), std::move(arguments_)); }

 private:
  std::vector<Record> records_;
  std::vector<std::max_align_t> arguments_;
};

CpuStream::CpuStream(std::shared_ptr<ThreadPool> pool) : pool_(std::move(pool)) {}
CpuStream::~CpuStream() = default;

void CpuStream::launch(const Launch& launch) {
  switch (mode_) {
    case Mode::Planning:
      return;
    case Mode::Capturing:
      recording_->add(launch);
      break;
    case Mode::Eager:
      launch.invoke(*this, launch.function, launch.args);
      break;
  }
  ++launches_;
}

void CpuStream::copy(void* to, const void* from, std::size_t bytes) {
  if (!only_.empty()) return;
  const CopyArgs args{to, from, bytes};
  launch({"copy", &invoke<CopyArgs>, reinterpret_cast<void (*)()>(CopyFunction{copy_bytes}), &args, sizeof(args)});
}

void CpuStream::zero(void* to, std::size_t bytes) {
  if (!only_.empty()) return;
  const ZeroArgs args{to, bytes};
  launch({"zero", &invoke<ZeroArgs>, reinterpret_cast<void (*)()>(ZeroFunction{zero_bytes}), &args, sizeof(args)});
}

void CpuStream::download(void* host, const void* device, std::size_t bytes, std::string_view name) {
  require(mode_ == Mode::Eager,
          "download: {} was read on the host while a step is being {}: its values do not exist yet", name,
          mode_ == Mode::Capturing ? "captured" : "planned");
  if (bytes != 0) std::memcpy(host, device, bytes);
}

void CpuStream::upload(void* device, const void* host, std::size_t bytes, std::string_view name) {
  require(mode_ == Mode::Eager,
          "upload: {} was written from the host while a step is being {}: it would be frozen at its captured value",
          name, mode_ == Mode::Capturing ? "captured" : "planned");
  if (bytes != 0) std::memcpy(device, host, bytes);
}

void CpuStream::download_async(void* host, const void* device, std::size_t bytes) {
  download(host, device, bytes, "an asynchronous copy");
}

std::unique_ptr<Event> CpuStream::record() { return std::make_unique<FinishedEvent>(); }

void CpuStream::begin_capture() {
  require(mode_ == Mode::Eager, "capture: the stream is already capturing or planning");
  recording_ = std::make_unique<Recording>();
  mode_ = Mode::Capturing;
}

std::unique_ptr<Graph> CpuStream::end_capture() {
  require(mode_ == Mode::Capturing, "capture: the stream is not capturing");
  mode_ = Mode::Eager;
  return std::exchange(recording_, nullptr)->finish();
}

void CpuStream::abandon_capture() noexcept {
  mode_ = Mode::Eager;
  recording_.reset();
}

void parallel_blocks(Stream& stream, std::int64_t blocks, const std::function<void(std::int64_t)>& body) {
  static_cast<CpuStream&>(stream).pool().run(blocks, body);
}

}  // namespace graft
