#include "engine/tensor.h"

#include <atomic>
#include <utility>

#include "engine/require.h"

namespace graft {

std::uint64_t next_tensor_id() {
  static std::atomic<std::uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, Shape shape, DType dtype, std::size_t byte_offset)
    : shape_(shape),
      dtype_(dtype),
      id_(next_tensor_id()),
      data_(storage->data() + byte_offset),
      storage_(std::move(storage)) {}

Tensor Tensor::reshaped(const Shape& shape) const {
  require(shape.elements() == elements(), "reshape: {} has {} elements, expected {} as in {}", shape.str(),
          shape.elements(), elements(), shape_.str());
  Tensor result = *this;
  result.shape_ = shape;
  return result;
}

Tensor Tensor::slice(std::int64_t first, std::int64_t count) const {
  require(shape_.rank() >= 1, "slice: a scalar has no rows");
  require(first >= 0 && count >= 0 && first + count <= shape_[0], "slice: rows {}..{}, expected within 0..{}", first,
          first + count, shape_[0]);
  const std::int64_t row = shape_[0] == 0 ? 0 : elements() / shape_[0];
  Shape shape;
  switch (shape_.rank()) {
    case 1:
      shape = {count};
      break;
    case 2:
      shape = {count, shape_[1]};
      break;
    case 3:
      shape = {count, shape_[1], shape_[2]};
      break;
    case 4:
      shape = {count, shape_[1], shape_[2], shape_[3]};
      break;
    default:
      shape = {count, shape_[1], shape_[2], shape_[3], shape_[4]};
  }
  Tensor result = *this;
  result.shape_ = shape;
  result.data_ += static_cast<std::size_t>(first * row) * size_of(dtype_);
  result.id_ = next_tensor_id();
  result.requires_grad_ = false;
  return result;
}

}  // namespace graft
