#include "engine/basic_kernels.h"

#include <cstring>
#include <type_traits>

#include "engine/cpu_stream.h"
#include "engine/require.h"

namespace graft {
namespace {

constexpr std::int64_t kGrain = 1 << 15;  // elements a thread takes at a time

template <class T>
struct Type {
  using type = T;
};

template <class Body>
void with_floating(DType dtype, const char* kernel, Body&& body) {
  switch (dtype) {
    case DType::F32:
      return body(Type<float>{});
    case DType::BF16:
      return body(Type<bfloat16>{});
    case DType::F64:
      return body(Type<double>{});
    default:
      require(false, "{}: dtype is {}, expected float32, bfloat16 or float64", kernel, name_of(dtype));
  }
}

template <class T>
T rounded(double value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
void fill(Stream& stream, View y, double value) {
  T* out = y.as<T>();
  const T element = rounded<T>(value);
  parallel_for(stream, y.shape.elements(), kGrain, [=](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) out[i] = element;
  });
}

void fill_value_cpu(Stream& stream, const FillArgs& args) {
  switch (args.y.dtype) {
    case DType::F32:
      return fill<float>(stream, args.y, args.value);
    case DType::BF16:
      return fill<bfloat16>(stream, args.y, args.value);
    case DType::F64:
      return fill<double>(stream, args.y, args.value);
    case DType::I32:
      return fill<std::int32_t>(stream, args.y, args.value);
    case DType::I64:
      return fill<std::int64_t>(stream, args.y, args.value);
    case DType::U8:
      return fill<std::uint8_t>(stream, args.y, args.value);
  }
}

void require_same_size(const char* kernel, const View& y, const ConstView& x) {
  require(y.shape.elements() == x.shape.elements(), "{}: x is {}, expected as many elements as y {}", kernel,
          x.shape.str(), y.shape.str());
}

/// float64 on either side makes the arithmetic float64; otherwise it is float32.
template <class To, class From>
using Wider = std::conditional_t<std::is_same_v<To, double> || std::is_same_v<From, double>, double, float>;

void add_to_cpu(Stream& stream, const AddArgs& args) {
  require_same_size("add_to", args.y, args.x);
  with_floating(args.y.dtype, "add_to", [&](auto to) {
    with_floating(args.x.dtype, "add_to", [&](auto from) {
      using To = typename decltype(to)::type;
      using From = typename decltype(from)::type;
      using W = Wider<To, From>;
      To* y = args.y.as<To>();
      const From* x = args.x.as<From>();
      parallel_for(stream, args.y.shape.elements(), kGrain, [=](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
          y[i] = rounded<To>(static_cast<W>(y[i]) + static_cast<W>(x[i]));
        }
      });
    });
  });
}

void copy_cast_cpu(Stream& stream, const CastArgs& args) {
  require_same_size("copy_cast", args.y, args.x);
  if (args.y.dtype == args.x.dtype) {
    auto* to = args.y.as<unsigned char>();
    const auto* from = args.x.as<unsigned char>();
    const auto bytes = static_cast<std::int64_t>(size_of(args.y.dtype)) * args.y.shape.elements();
    parallel_for(stream, bytes, kGrain * 4, [=](std::int64_t first, std::int64_t last) {
      std::memcpy(to + first, from + first, static_cast<std::size_t>(last - first));
    });
    return;
  }
  with_floating(args.y.dtype, "copy_cast", [&](auto to) {
    with_floating(args.x.dtype, "copy_cast", [&](auto from) {
      using To = typename decltype(to)::type;
      using From = typename decltype(from)::type;
      To* y = args.y.as<To>();
      const From* x = args.x.as<From>();
      parallel_for(stream, args.y.shape.elements(), kGrain, [=](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) y[i] = rounded<To>(x[i]);
      });
    });
  });
}

void zero_columns_cpu(Stream& stream, const ZeroColumnsArgs& args) {
  const std::size_t size = size_of(args.y.dtype);
  const auto width = static_cast<std::size_t>(args.y.shape.columns()) * size;
  const auto offset = static_cast<std::size_t>(args.first) * size;
  const auto bytes = static_cast<std::size_t>(args.count) * size;
  parallel_for(stream, args.y.shape.rows(), 256, [=](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      std::memset(args.y.as<std::byte>() + static_cast<std::size_t>(row) * width + offset, 0, bytes);
    }
  });
}

const Register zero_columns_registered{zero_columns, Backend::Cpu, zero_columns_cpu};
const Register fill_registered{fill_value, Backend::Cpu, fill_value_cpu};
const Register add_registered{add_to, Backend::Cpu, add_to_cpu};
const Register cast_registered{copy_cast, Backend::Cpu, copy_cast_cpu};

}  // namespace
}  // namespace graft
