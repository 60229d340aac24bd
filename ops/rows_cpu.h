#pragma once
// Rows of any floating dtype as float or double, for CPU kernels: one instantiation an accumulation type instead of
// one a combination of dtypes. Converting a row costs little beside the arithmetic on it.

#include <cstdint>
#include <type_traits>

#include "engine/dtype.h"
#include "engine/tensor.h"

namespace graft {

/// Calls body(A{}) with the type that arithmetic on `dtype` is done in: double for float64, float otherwise.
template <class Body>
void with_accumulate(DType dtype, Body&& body) {
  if (dtype == DType::F64) {
    body(double{});
  } else {
    body(float{});
  }
}

/// Calls body(T{}) with the C++ type of a floating dtype.
template <class Body>
void with_floating(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::F64:
      body(double{});
      return;
    case DType::BF16:
      body(bfloat16{});
      return;
    default:
      body(float{});
  }
}

/// out[i] = view[offset + i] for i < count.
template <class A>
void load_row(const ConstView& view, std::int64_t offset, std::int64_t count, A* out) {
  with_floating(view.dtype, [&](auto element) {
    const auto* const from = view.as<decltype(element)>() + offset;
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<A>(from[i]);
  });
}

/// view[offset + i] = values[i], rounded to the view's dtype.
template <class A>
void store_row(const View& view, std::int64_t offset, std::int64_t count, const A* values) {
  with_floating(view.dtype, [&](auto element) {
    using T = decltype(element);
    T* const to = view.as<T>() + offset;
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<Accumulate<T>>(values[i]));
  });
}

/// Stores or adds, as the target says. An absent target is skipped.
template <class A>
void store_gradient(const GradTarget& target, std::int64_t offset, std::int64_t count, const A* values) {
  if (!target) return;
  if (!target.accumulate) {
    store_row(target.view, offset, count, values);
    return;
  }
  with_floating(target.view.dtype, [&](auto element) {
    using T = decltype(element);
    T* const to = target.view.as<T>() + offset;
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = static_cast<T>(static_cast<Accumulate<T>>(static_cast<A>(to[i]) + values[i]));
    }
  });
}

/// One element, as load_row.
template <class A>
[[nodiscard]] A load_element(const ConstView& view, std::int64_t index) {
  A value{};
  load_row(view, index, 1, &value);
  return value;
}

/// Sum of term(i) for i < count, in sixteen interleaved sums that are added in a fixed order: compilers vectorise
/// it, and rounding errors grow with count / 16.
template <class A, class Term>
[[nodiscard]] A interleaved_sum(std::int64_t count, Term&& term) {
  constexpr int kLanes = 16;
  A lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += term(i);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace graft
