#include "engine/parameter_store.h"

#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <ranges>
#include <utility>

#include "engine/basic_kernels.h"
#include "engine/require.h"
#include "engine/stream.h"

namespace graft {
namespace init {

Initializer constant(double value) {
  return [value](const Draw&, std::int64_t) { return value; };
}
Initializer normal(double standard_deviation) {
  return [standard_deviation](const Draw& draw, std::int64_t index) {
    return standard_deviation * static_cast<double>(draw.normal(0, static_cast<std::uint32_t>(index)));
  };
}
Initializer uniform(double bound) {
  return [bound](const Draw& draw, std::int64_t index) {
    return bound * (2.0 * static_cast<double>(draw.uniform(0, static_cast<std::uint32_t>(index))) - 1.0);
  };
}
Initializer uniform_fan_in(std::int64_t fan_in) { return uniform(1.0 / std::sqrt(static_cast<double>(fan_in))); }

}  // namespace init

namespace {

Shape stored_shape(const Shape& shape, const ParameterOptions& options) {
  const auto pad = [](std::int64_t extent, bool padded) { return padded ? round_up(extent, 8) : extent; };
  switch (shape.rank()) {
    case 1:
      return {pad(shape[0], options.pad_rows)};
    case 2:
      return {pad(shape[0], options.pad_rows), pad(shape[1], options.pad_columns)};
    default:
      return shape;
  }
}

/// Calls visit(logical index, stored index) for every logical element, row-major.
template <class Visit>
void for_each_element(const ParameterStore::Entry& entry, Visit visit) {
  const std::int64_t columns = entry.shape.columns();
  const std::int64_t stored_columns = entry.stored.columns();
  const std::int64_t rows = entry.shape.elements() / (columns == 0 ? 1 : columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      visit(row * columns + column, row * stored_columns + column);
    }
  }
}

double load(const std::vector<std::byte>& bytes, DType dtype, std::int64_t index) {
  if (dtype == DType::F64) {
    double value = 0;
    std::memcpy(&value, bytes.data() + index * 8, 8);
    return value;
  }
  float value = 0;
  std::memcpy(&value, bytes.data() + index * 4, 4);
  return value;
}

void store(std::vector<std::byte>& bytes, DType dtype, std::int64_t index, double value) {
  if (dtype == DType::F64) {
    std::memcpy(bytes.data() + index * 8, &value, 8);
  } else {
    const auto narrow = static_cast<float>(value);
    std::memcpy(bytes.data() + index * 4, &narrow, 4);
  }
}

}  // namespace

Tensor Param::tensor(const Context& ctx) const {
  if (ctx.precision != Precision::Bf16) return master(ctx);
  const ParameterStore::Entry& entry = store_->entries_[static_cast<std::size_t>(index_)];
  require(static_cast<bool>(store_->compute_copy_),
          "parameter {}: the store has no bfloat16 copy, expected one in bf16", entry.name);
  Tensor result = store_->compute_copy_.slice(entry.offset, entry.stored.elements()).reshaped(entry.stored);
  result.set_id(entry.id);
  result.set_requires_grad(true);
  return result;
}

Tensor Param::master(const Context&) const {
  const ParameterStore::Entry& entry = store_->entries_[static_cast<std::size_t>(index_)];
  require(store_->allocated_, "parameter {}: used before the store was allocated", entry.name);
  Tensor result = store_->weights_.slice(entry.offset, entry.stored.elements()).reshaped(entry.stored);
  result.set_id(entry.id);
  result.set_requires_grad(true);
  return result;
}

const std::string& Param::name() const { return store_->entries_[static_cast<std::size_t>(index_)].name; }
const Shape& Param::shape() const { return store_->entries_[static_cast<std::size_t>(index_)].shape; }

Param ParameterStore::add(std::string_view scope, std::string_view name, const Shape& shape, Initializer initializer,
                          ParameterOptions options) {
  std::string full = scope.empty() ? std::string(name) : fmt::format("{}.{}", scope, name);
  require(!allocated_, "parameter {}: added after the store was allocated", full);
  require(!by_name_.contains(full), "parameter {}: a parameter of this name exists already", full);
  const int index = static_cast<int>(entries_.size());
  by_name_.emplace(full, index);
  const std::uint64_t id = next_tensor_id();
  by_id_.emplace(id, index);
  entries_.push_back(
      {std::move(full), shape, stored_shape(shape, options), 0, options, std::move(initializer), id, false});
  return {this, index};
}

void ParameterStore::allocate(const Context& ctx, bool with_optimizer) {
  require(!allocated_, "parameter store: allocated twice");
  std::int64_t offset = 0;
  for (Entry& entry : std::views::reverse(entries_)) {
    entry.offset = offset;
    offset += round_up(entry.stored.elements(), kAlignment);
  }
  flat_elements_ = offset;
  const DType dtype = ctx.stream_dtype();
  const Shape flat{flat_elements_};
  const auto zeros = [&](DType type, const char* name) {
    Tensor tensor = ctx.empty_run(flat, type, name);
    ctx.stream->zero(tensor.mutable_view().data, tensor.bytes());
    return tensor;
  };
  weights_ = zeros(dtype, "weights");
  if (ctx.precision == Precision::Bf16) compute_copy_ = zeros(DType::BF16, "bfloat16 weights");
  if (with_optimizer) {
    gradients_ = zeros(dtype, "gradients");
    first_moments_ = zeros(dtype, "first moments");
    second_moments_ = zeros(dtype, "second moments");
    decay_flags_ = ctx.empty_run({flat_elements_ / kAlignment}, DType::U8, "decay flags");
    if (ctx.stream->mode() == Stream::Mode::Eager) {
      std::vector<std::uint8_t> flags(static_cast<std::size_t>(flat_elements_ / kAlignment), 0);
      for (const Entry& entry : entries_) {
        const std::int64_t first = entry.offset / kAlignment;
        const std::int64_t count = ceil_div(entry.stored.elements(), kAlignment);
        for (std::int64_t i = 0; i < count; ++i)
          flags[static_cast<std::size_t>(first + i)] = entry.options.decay ? 1 : 0;
      }
      ctx.stream->upload(decay_flags_.mutable_view().data, flags.data(), flags.size(), "decay flags");
    }
  }
  allocated_ = true;
}

void ParameterStore::initialize(const Context& ctx, std::uint64_t seed) {
  require(allocated_, "parameter store: initialised before it was allocated");
  std::vector<std::byte> host(weights_.bytes(), std::byte{0});
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const Draw draw{seed, RandomDomain::Initialisation, i, 0};
    for_each_element(entry, [&](std::int64_t logical, std::int64_t stored) {
      store(host, weights_.dtype(), entry.offset + stored, entry.initializer(draw, logical));
    });
  }
  ctx.stream->upload(weights_.mutable_view().data, host.data(), host.size(), "weights");
  refresh_compute_copy(ctx);
}

void ParameterStore::begin_gradients() {
  for (Entry& entry : entries_) entry.written = false;
}

void ParameterStore::finish_gradients(const Context& ctx) {
  require(static_cast<bool>(gradients_), "parameter store: it keeps no gradients");
  // Neighbouring parameters nobody wrote are zeroed together.
  std::int64_t first = -1;
  std::int64_t end = -1;
  const auto flush = [&] {
    if (first < 0) return;
    const std::size_t size = size_of(gradients_.dtype());
    ctx.stream->zero(gradients_.mutable_view().as<std::byte>() + static_cast<std::size_t>(first) * size,
                     static_cast<std::size_t>(end - first) * size);
    first = -1;
  };
  for (const Entry& entry : std::views::reverse(entries_)) {
    if (entry.written) {
      flush();
      continue;
    }
    if (first < 0) first = entry.offset;
    end = entry.offset + round_up(entry.stored.elements(), kAlignment);
  }
  flush();
}

GradTarget ParameterStore::gradient_target(std::uint64_t id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return {};
  Entry& entry = entries_[static_cast<std::size_t>(found->second)];
  require(static_cast<bool>(gradients_), "parameter {}: the store keeps no gradients", entry.name);
  const std::size_t offset = static_cast<std::size_t>(entry.offset) * size_of(gradients_.dtype());
  const View view{gradients_.mutable_view().as<std::byte>() + offset, gradients_.dtype(), entry.stored};
  return {view, std::exchange(entry.written, true)};
}

const ParameterStore::Entry* ParameterStore::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[static_cast<std::size_t>(found->second)];
}

std::int64_t ParameterStore::count() const {
  std::int64_t total = 0;
  for (const Entry& entry : entries_) total += entry.shape.elements();
  return total;
}

const Tensor& ParameterStore::buffer(Buffer which) const {
  switch (which) {
    case Buffer::Weights:
      return weights_;
    case Buffer::Gradients:
      return gradients_;
    case Buffer::FirstMoments:
      return first_moments_;
    case Buffer::SecondMoments:
      return second_moments_;
  }
  return weights_;
}

std::vector<double> ParameterStore::read(const Context& ctx, const Entry& entry, Buffer which) const {
  const Tensor part = buffer(which).slice(entry.offset, entry.stored.elements());
  std::vector<std::byte> bytes(part.bytes());
  ctx.stream->download(bytes.data(), part.view().data, bytes.size(), entry.name);
  std::vector<double> values(static_cast<std::size_t>(entry.shape.elements()));
  for_each_element(entry, [&](std::int64_t logical, std::int64_t stored) {
    values[static_cast<std::size_t>(logical)] = load(bytes, part.dtype(), stored);
  });
  return values;
}

void ParameterStore::write(const Context& ctx, const Entry& entry, Buffer which, const std::vector<double>& values) {
  require(static_cast<std::int64_t>(values.size()) == entry.shape.elements(), "parameter {}: {} values, expected {}",
          entry.name, values.size(), entry.shape.elements());
  const Tensor part = buffer(which).slice(entry.offset, entry.stored.elements());
  std::vector<std::byte> bytes(part.bytes(), std::byte{0});
  for_each_element(entry, [&](std::int64_t logical, std::int64_t stored) {
    store(bytes, part.dtype(), stored, values[static_cast<std::size_t>(logical)]);
  });
  ctx.stream->upload(part.mutable_view().data, bytes.data(), bytes.size(), entry.name);
}

void ParameterStore::refresh_compute_copy(const Context& ctx) {
  if (compute_copy_) copy_cast(ctx, {compute_copy_.mutable_view(), weights_.view()});
}

std::uint64_t ParameterStore::hash(const Context& ctx) const {
  std::vector<std::byte> bytes(weights_.bytes());
  ctx.stream->download(bytes.data(), weights_.view().data, bytes.size(), "weights");
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace graft
