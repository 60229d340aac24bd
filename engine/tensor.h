#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "engine/device.h"
#include "engine/dtype.h"
#include "engine/shape.h"

namespace graft {

/// What a kernel reads: pointer, dtype, shape. Owns nothing, lives for one call.
struct ConstView {
  const void* data = nullptr;
  DType dtype = DType::F32;
  Shape shape;

  [[nodiscard]] GRAFT_HD explicit operator bool() const { return data != nullptr; }
  template <class T>
  [[nodiscard]] GRAFT_HD const T* as() const {
    return static_cast<const T*>(data);
  }
};

/// What a kernel writes.
struct View {
  void* data = nullptr;
  DType dtype = DType::F32;
  Shape shape;

  [[nodiscard]] GRAFT_HD explicit operator bool() const { return data != nullptr; }
  template <class T>
  [[nodiscard]] GRAFT_HD T* as() const {
    return static_cast<T*>(data);
  }
  // NOLINTNEXTLINE(google-explicit-constructor): whoever may write may read
  operator ConstView() const { return {data, dtype, shape}; }
};

/// Where a backward kernel leaves a gradient, and whether it stores (`=`) or adds (`+=`). An empty
/// view means that nobody wants this gradient: the kernel skips it. The target's dtype rules.
struct GradTarget {
  View view;
  bool accumulate = false;

  [[nodiscard]] GRAFT_HD explicit operator bool() const { return view.data != nullptr; }
};

/// One piece of memory and the ticket its allocator knows it by.
struct Block {
  void* data = nullptr;
  std::size_t bytes = 0;
  std::uint64_t ticket = 0;
};

/// An allocator of device memory. Implementations: a plain pool (tests, run tensors, decoding) and
/// StepArena (the memory of one captured step).
class Memory {
 public:
  virtual ~Memory() = default;
  /// At least `bytes` bytes aligned to 256. `name` is for messages. Throws EnvironmentError when full.
  virtual Block allocate(std::size_t bytes, std::string_view name) = 0;
  virtual void release(const Block& block) noexcept = 0;
  /// What a block just allocated will hold; only a memory that looks at values needs to know.
  virtual void describe(const Block& /*block*/, const Shape& /*shape*/, DType /*dtype*/) {}
};

/// One shared block; goes back to its allocator with the last Tensor that shares it.
class Storage {
 public:
  Storage(std::shared_ptr<Memory> memory, Block block) : memory_(std::move(memory)), block_(block) {}
  ~Storage() {
    if (memory_ != nullptr) memory_->release(block_);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(block_.data); }
  [[nodiscard]] std::size_t bytes() const { return block_.bytes; }

 private:
  std::shared_ptr<Memory> memory_;  // null: memory that somebody else owns
  Block block_;
};

/// Identity of a tensor for the tape, without its memory.
struct GradRef {
  std::uint64_t id = 0;
  Shape shape;
  DType dtype = DType::F32;
  bool requires_grad = false;
};

/// Shape, dtype, gradient id and a share of a Storage. Dense and row-major. Copies are cheap and alias.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Storage> storage, Shape shape, DType dtype, std::size_t byte_offset = 0);

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::int64_t elements() const { return shape_.elements(); }
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype_); }
  [[nodiscard]] explicit operator bool() const { return storage_ != nullptr; }

  [[nodiscard]] ConstView view() const { return {data_, dtype_, shape_}; }
  /// Write access, spelled out.
  [[nodiscard]] View mutable_view() const { return {data_, dtype_, shape_}; }

  /// The same memory and gradient identity under another shape with as many elements.
  [[nodiscard]] Tensor reshaped(const Shape& shape) const;
  /// Rows [first, first + count) of the leading axis, as a tensor of its own without gradient.
  [[nodiscard]] Tensor slice(std::int64_t first, std::int64_t count) const;

  [[nodiscard]] std::uint64_t id() const { return id_; }
  [[nodiscard]] bool requires_grad() const { return requires_grad_; }
  void set_requires_grad(bool value) { requires_grad_ = value; }
  /// Gives the tensor the gradient identity `id`; used by the parameter store.
  void set_id(std::uint64_t id) { id_ = id; }
  // NOLINTNEXTLINE(google-explicit-constructor): closures capture a GradRef where the values are not needed
  operator GradRef() const { return {id_, shape_, dtype_, requires_grad_}; }

  /// How many tensors share the memory; 1 means that writing in place is seen by nobody else.
  [[nodiscard]] long use_count() const { return storage_.use_count(); }

 private:
  Shape shape_;
  DType dtype_ = DType::F32;
  bool requires_grad_ = false;
  std::uint64_t id_ = 0;
  std::byte* data_ = nullptr;
  std::shared_ptr<Storage> storage_;
};

/// A number no other tensor of this process has. Only equality matters, never the value.
[[nodiscard]] std::uint64_t next_tensor_id();

}  // namespace graft
