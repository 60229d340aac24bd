#include "engine/stream.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/basic_kernels.h"
#include "engine/cpu_stream.h"
#include "engine/error.h"
#include "engine/kernel.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

struct AxpyArgs {
  View y;
  ConstView x;
  double factor;
};
constinit Kernel<AxpyArgs> axpy{"axpy"};
constinit Kernel<AxpyArgs> nowhere{"nowhere"};

void axpy_cpu(Stream& stream, const AxpyArgs& args) {
  auto* y = args.y.as<double>();
  const auto* x = args.x.as<double>();
  parallel_for(stream, args.y.shape.elements(), 2, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) y[i] += args.factor * x[i];
  });
}
const Register registered{axpy, Backend::Cpu, axpy_cpu};

Tensor vector_of(const TestDevice& device, const std::vector<double>& values) {
  return device.tensor({static_cast<std::int64_t>(values.size())}, DType::F64, values);
}

TEST_CASE("kernel: runs the backend's function, and says which one is missing") {
  const TestDevice device;
  const Tensor x = vector_of(device, {1, 2, 3});
  const Tensor y = vector_of(device, {1, 1, 1});
  CHECK(axpy.available(Backend::Cpu));
  CHECK_FALSE(axpy.available(Backend::Cuda));
  axpy(device.ctx(), {y.mutable_view(), x.view(), 2});
  CHECK(device.values(y) == std::vector<double>{3, 5, 7});
  CHECK_THROWS_WITH_AS(nowhere(device.ctx(), {y.mutable_view(), x.view(), 2}),
                       doctest::Contains("nowhere: no kernel for the backend cpu"), DeviceError);
}

TEST_CASE("stream: capture runs nothing; replay repeats launches with the arguments they had") {
  TestDevice device;
  Stream& stream = device.stream();
  const Tensor x = vector_of(device, {1, 2, 3});
  const Tensor y = vector_of(device, {0, 0, 0});
  const Tensor z = vector_of(device, {9, 9, 9});
  const std::uint64_t before = stream.launches();
  stream.begin_capture();
  CHECK(stream.mode() == Stream::Mode::Capturing);
  {
    AxpyArgs args{y.mutable_view(), x.view(), 10};
    axpy(device.ctx(), args);
    args.factor = 1000;  // the block was copied: this changes nothing
  }
  axpy(device.ctx(), {y.mutable_view(), x.view(), 1});
  stream.copy(z.mutable_view().data, y.view().data, y.bytes());
  stream.zero(z.mutable_view().data, sizeof(double));
  const std::unique_ptr<Graph> graph = stream.end_capture();
  CHECK(stream.mode() == Stream::Mode::Eager);
  CHECK(graph->launches() == 4);
  CHECK(stream.launches() == before + 4);
  CHECK(device.values(y) == std::vector<double>{0, 0, 0});
  CHECK(device.values(z) == std::vector<double>{9, 9, 9});

  graph->replay(stream);
  CHECK(device.values(y) == std::vector<double>{11, 22, 33});
  CHECK(device.values(z) == std::vector<double>{0, 22, 33});
  graph->replay(stream);
  CHECK(device.values(y) == std::vector<double>{22, 44, 66});
  CHECK(device.values(z) == std::vector<double>{0, 44, 66});
}

TEST_CASE("stream: an empty graph") {
  TestDevice device;
  device.stream().begin_capture();
  const auto graph = device.stream().end_capture();
  CHECK(graph->launches() == 0);
  CHECK_NOTHROW(graph->replay(device.stream()));
}

TEST_CASE("stream: reading or writing a tensor while capturing throws and names it") {
  TestDevice device;
  Stream& stream = device.stream();
  const Tensor x = vector_of(device, {1});
  double host = 5;
  stream.begin_capture();
  CHECK_THROWS_WITH_AS(stream.download(&host, x.view().data, 8, "validation loss"),
                       doctest::Contains("validation loss was read on the host while a step is being captured"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(stream.upload(x.mutable_view().data, &host, 8, "batch"),
                       doctest::Contains("batch was written from the host while a step is being captured"),
                       ArgumentError);
  CHECK_THROWS_AS(stream.download_async(&host, x.view().data, 8), ArgumentError);
  CHECK_THROWS_AS(stream.begin_capture(), ArgumentError);
  CHECK_THROWS_AS(stream.set_planning(true), ArgumentError);
  CHECK(host == 5);
  stream.abandon_capture();
  CHECK(stream.mode() == Stream::Mode::Eager);
  CHECK(device.values(x) == std::vector<double>{1});
}

TEST_CASE("stream: an abandoned capture leaves nothing behind") {
  TestDevice device;
  Stream& stream = device.stream();
  const Tensor x = vector_of(device, {1});
  stream.begin_capture();
  axpy(device.ctx(), {x.mutable_view(), x.view(), 1});
  stream.abandon_capture();
  stream.begin_capture();
  const auto graph = stream.end_capture();
  CHECK(graph->launches() == 0);
  CHECK(device.values(x) == std::vector<double>{1});
  CHECK_THROWS_AS(static_cast<void>(stream.end_capture()), ArgumentError);
}

TEST_CASE("stream: planning discards launches") {
  TestDevice device;
  Stream& stream = device.stream();
  const Tensor x = vector_of(device, {1, 2});
  const std::uint64_t before = stream.launches();
  stream.set_planning(true);
  axpy(device.ctx(), {x.mutable_view(), x.view(), 1});
  nowhere(device.ctx(), {x.mutable_view(), x.view(), 1});  // planning needs no kernels
  stream.zero(x.mutable_view().data, x.bytes());
  stream.copy(x.mutable_view().data, x.view().data, x.bytes());
  double host = 0;
  CHECK_THROWS_WITH_AS(stream.download(&host, x.view().data, 8, "loss"), doctest::Contains("loss"), ArgumentError);
  CHECK_THROWS_WITH_AS(stream.upload(x.mutable_view().data, &host, 8, "seed"), doctest::Contains("planned"),
                       ArgumentError);
  stream.set_planning(false);
  CHECK(stream.launches() == before);
  CHECK(device.values(x) == std::vector<double>{1, 2});
}

TEST_CASE("stream: events of the CPU are finished at once") {
  TestDevice device;
  const auto event = device.stream().record();
  CHECK(event->finished());
  event->synchronize();
  device.stream().wait(*event);
  device.stream().synchronize();
}

TEST_CASE("stream: copies of no bytes need no memory") {
  TestDevice device;
  Stream& stream = device.stream();
  CHECK_NOTHROW(stream.copy(nullptr, nullptr, 0));
  CHECK_NOTHROW(stream.zero(nullptr, 0));
  CHECK_NOTHROW(stream.download(nullptr, nullptr, 0, "nothing"));
}

}  // namespace
}  // namespace graft::test
