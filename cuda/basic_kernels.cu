#include "engine/basic_kernels.h"

#include <array>

#include "cuda/architectures.h"
#include "cuda/launch.cuh"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // elements a thread moves where addresses allow 16-byte accesses

/// double does not fit vec.cuh's loads: float64 tensors exist on a GPU only in tests and take the plain path.
template <class T>
__device__ __forceinline__ double wide(T value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return static_cast<double>(to_float(value));
  }
}

template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, double>) {
    return wide(value);
  } else if constexpr (std::is_same_v<From, double>) {
    return from_float<To>(static_cast<float>(value));
  } else {
    return from_float<To>(to_float(value));
  }
}

template <class To, class From>
__device__ __forceinline__ To sum(To y, From x) {
  if constexpr (std::is_same_v<To, double> || std::is_same_v<From, double>) {
    return convert<To>(wide(y) + wide(x));
  } else {
    return from_float<To>(to_float(y) + to_float(x));
  }
}

template <class T>
__global__ void fill_kernel(T* y, T value, std::int64_t n) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) y[i] = value;
}

template <bool kAdd, class To, class From>
__global__ void plain_kernel(To* __restrict__ y, const From* __restrict__ x, std::int64_t n) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  if constexpr (kAdd) {
    y[i] = sum<To, From>(y[i], x[i]);
  } else {
    y[i] = convert<To>(x[i]);
  }
}

template <bool kAdd, class To, class From>
__global__ void packed_kernel(To* __restrict__ y, const From* __restrict__ x, std::int64_t n) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kEach;
  if (first >= n) return;
  if (first + kEach <= n) {
    float value[kEach];
    load(x + first, value);
    if constexpr (kAdd) {
      float old[kEach];
      load(y + first, old);
#pragma unroll
      for (int i = 0; i < kEach; ++i) value[i] += old[i];
    }
    store(y + first, value);
    return;
  }
  for (std::int64_t i = first; i < n; ++i) {
    if constexpr (kAdd) {
      y[i] = sum<To, From>(y[i], x[i]);
    } else {
      y[i] = convert<To>(x[i]);
    }
  }
}

template <bool kAdd, class To, class From>
void launch_elementwise(cudaStream_t stream, View y, ConstView x) {
  const std::int64_t n = y.shape.elements();
  if (n == 0) return;
  if constexpr (!std::is_same_v<To, double> && !std::is_same_v<From, double>) {
    if (is_aligned16(y.data) && is_aligned16(x.data)) {
      packed_kernel<kAdd><<<blocks_for(n, kThreads * kEach), kThreads, 0, stream>>>(y.as<To>(), x.as<From>(), n);
      return;
    }
  }
  plain_kernel<kAdd><<<blocks_for(n, kThreads), kThreads, 0, stream>>>(y.as<To>(), x.as<From>(), n);
}

/// As with_type(), with float64.
template <class Body>
void with_floating(DType dtype, const char* kernel, Body&& body) {
  if (dtype == DType::F64) {
    body(Type<double>{});
  } else {
    with_type(dtype, kernel, body);
  }
}

template <bool kAdd>
void elementwise(Stream& stream, View y, ConstView x, const char* kernel) {
  if (y.shape.elements() != x.shape.elements()) {
    throw DeviceError(std::string(kernel) + ": x has " + std::to_string(x.shape.elements()) + " elements, y has " +
                      std::to_string(y.shape.elements()));
  }
  with_floating(y.dtype, kernel, [&](auto to) {
    with_floating(x.dtype, kernel, [&](auto from) {
      launch_elementwise<kAdd, typename decltype(to)::type, typename decltype(from)::type>(handle(stream), y, x);
    });
  });
  check(cudaGetLastError());
}

template <class T>
void launch_fill(Stream& stream, View y, T value) {
  const std::int64_t n = y.shape.elements();
  if (n == 0) return;
  fill_kernel<<<blocks_for(n, kThreads), kThreads, 0, handle(stream)>>>(y.as<T>(), value, n);
  check(cudaGetLastError());
}

void launch_fill_value(Stream& stream, const FillArgs& args) {
  switch (args.y.dtype) {
    case DType::F32:
      return launch_fill(stream, args.y, static_cast<float>(args.value));
    case DType::BF16:
      return launch_fill(stream, args.y, __float2bfloat16_rn(static_cast<float>(args.value)));
    case DType::F64:
      return launch_fill(stream, args.y, args.value);
    case DType::I32:
      return launch_fill(stream, args.y, static_cast<std::int32_t>(args.value));
    case DType::I64:
      return launch_fill(stream, args.y, static_cast<std::int64_t>(args.value));
    case DType::U8:
      return launch_fill(stream, args.y, static_cast<std::uint8_t>(args.value));
  }
}

void launch_add_to(Stream& stream, const AddArgs& args) { elementwise<true>(stream, args.y, args.x, "add_to"); }

void launch_copy_cast(Stream& stream, const CastArgs& args) {
  if (args.y.dtype == args.x.dtype && args.y.shape.elements() == args.x.shape.elements()) {
    const std::size_t bytes = size_of(args.y.dtype) * static_cast<std::size_t>(args.y.shape.elements());
    if (bytes == 0) return;
    check(cudaMemcpyAsync(args.y.data, args.x.data, bytes, cudaMemcpyDeviceToDevice, handle(stream)));
    return;
  }
  elementwise<false>(stream, args.y, args.x, "copy_cast");
}

template <class T>
__global__ void zero_columns_kernel(T* y, std::int64_t elements, std::int64_t columns, std::int64_t first,
                                    std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < elements) y[i / count * columns + first + i % count] = T{};
}

void zero_columns_cuda(Stream& stream, const ZeroColumnsArgs& args) {
  const std::int64_t elements = args.y.shape.rows() * args.count;
  const auto launch = [&](auto zero) {
    using T = decltype(zero);
    zero_columns_kernel<<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
        args.y.as<T>(), elements, args.y.shape.columns(), args.first, args.count);
  };
  // zero has the same bits in every dtype of a size
  if (size_of(args.y.dtype) == 2) {
    launch(std::uint16_t{});
  } else if (size_of(args.y.dtype) == 4) {
    launch(std::uint32_t{});
  } else {
    launch(std::uint64_t{});
  }
  check(cudaGetLastError());
}

const Register zero_columns_registered{zero_columns, Backend::Cuda, zero_columns_cuda};
const Register fill_registered{fill_value, Backend::Cuda, launch_fill_value};
const Register add_registered{add_to, Backend::Cuda, launch_add_to};
const Register cast_registered{copy_cast, Backend::Cuda, launch_copy_cast};

}  // namespace

std::string compiled_architectures() {
  constexpr std::array kArchitectures{__CUDA_ARCH_LIST__};  // 800, 900, ...
  std::string list;
  for (const int architecture : kArchitectures) {
    list += (list.empty() ? "sm_" : ", sm_") + std::to_string(architecture / 10);
  }
  return list;
}

bool runs_on_current_device() {
  cudaFuncAttributes attributes{};
  const bool found = cudaFuncGetAttributes(&attributes, fill_kernel<float>) == cudaSuccess;
  static_cast<void>(cudaGetLastError());
  return found;
}

}  // namespace graft::cuda
