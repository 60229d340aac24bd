#include "engine/context.h"

#include "engine/require.h"

namespace graft {
namespace {

Tensor allocate(const std::shared_ptr<Memory>& memory, const Shape& shape, DType dtype, std::string_view name) {
  require(memory != nullptr, "context: no memory to allocate {} from", name);
  const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * size_of(dtype);
  const Block block = memory->allocate(bytes, name);
  memory->describe(block, shape, dtype);
  return {std::make_shared<Storage>(memory, block), shape, dtype};
}

}  // namespace

Tensor Context::empty(const Shape& shape, DType dtype, std::string_view name) const {
  return allocate(memory, shape, dtype, name);
}

Tensor Context::empty_run(const Shape& shape, DType dtype, std::string_view name) const {
  return allocate(run_memory, shape, dtype, name);
}

DType Context::compute_dtype() const {
  switch (precision) {
    case Precision::Bf16:
      return DType::BF16;
    case Precision::Fp64:
      return DType::F64;
    case Precision::Fp32:
    case Precision::Tf32:
      break;
  }
  return DType::F32;
}

Context Context::with_tape(Tape& tape_to_use) const {
  Context result = *this;
  result.tape = &tape_to_use;
  return result;
}

}  // namespace graft
