#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/context.h"
#include "engine/philox.h"
#include "engine/runtime.h"
#include "engine/tape.h"
#include "engine/tensor.h"

namespace graft {

class ParameterStore;

/// Value of element `index` of a parameter: init(draw, index), where draw belongs to (seed, parameter).
using Initializer = std::function<double(const Draw& draw, std::int64_t index)>;

namespace init {
[[nodiscard]] Initializer constant(double value);
[[nodiscard]] Initializer normal(double standard_deviation);
/// Uniform on [-bound, bound).
[[nodiscard]] Initializer uniform(double bound);
/// Uniform on +-1/sqrt(fan_in): the default of linear layers in both studies.
[[nodiscard]] Initializer uniform_fan_in(std::int64_t fan_in);
}  // namespace init

/// Handle of one parameter: an index into its store. Copies are cheap.
class Param {
 public:
  Param() = default;
  /// The tensor an op computes with: the bfloat16 copy of a matrix in bf16 mode, else the master
  /// weights. Its shape is the stored one, with padding.
  [[nodiscard]] Tensor tensor(const Context& ctx) const;
  /// The master weights whatever the precision (norm gains, A_log, D, dt bias).
  [[nodiscard]] Tensor master(const Context& ctx) const;
  [[nodiscard]] const std::string& name() const;
  [[nodiscard]] const Shape& shape() const;  // logical, without padding
  [[nodiscard]] explicit operator bool() const { return store_ != nullptr; }

 private:
  friend class ParameterStore;
  Param(ParameterStore* store, int index) : store_(store), index_(index) {}
  ParameterStore* store_ = nullptr;
  int index_ = -1;
};

struct ParameterOptions {
  bool decay = true;         // weight decay applies
  bool pad_rows = false;     // the first extent is stored rounded up to a multiple of 8; padding stays zero
  bool pad_columns = false;  // the same for the last extent of a matrix
  bool embedding = false;    // token embedding, head or position table: left out of some counts
};

/// All that the optimizer touches, in flat device buffers: master weights (float32, or float64 in
/// fp64), gradients, two moments, and in bf16 mode a bfloat16 copy of the weights. Parameters lie in
/// reverse order of registration, which is about the order in which backward finishes their
/// gradients. Each starts at a multiple of kAlignment elements; the gaps hold zeros.
class ParameterStore final : public GradientSink {
 public:
  static constexpr std::int64_t kAlignment = 64;  // elements; also the grain of the decay flags

  struct Entry {
    std::string name;  // "blocks.0.mixer.qkv.weight"
    Shape shape;       // logical
    Shape stored;      // with padding
    std::int64_t offset = 0;
    ParameterOptions options;
    Initializer initializer;
    std::uint64_t id = 0;
    bool written = false;  // gradient written in this step
  };

  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  /// Declares a parameter "<scope>.<name>". Throws ArgumentError on a second one of that name, or
  /// after allocate().
  Param add(std::string_view scope, std::string_view name, const Shape& shape, Initializer initializer,
            ParameterOptions options = {});

  /// Lays the parameters out and takes the memory. `with_optimizer` leaves out moments where false.
  void allocate(const Context& ctx, bool with_optimizer = true);
  /// Fills the master weights (and the bf16 copy) from their initializers. Same seed, same weights, on any device.
  void initialize(const Context& ctx, std::uint64_t seed);

  /// Forgets which gradients were written. The next write of each is `=`.
  void begin_gradients();
  /// Zeroes the gradients that no backward kernel wrote since begin_gradients().
  void finish_gradients(const Context& ctx);
  GradTarget gradient_target(std::uint64_t id) override;
  [[nodiscard]] bool owns(std::uint64_t id) const override { return by_id_.contains(id); }

  [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }
  [[nodiscard]] const Entry* find(std::string_view name) const;
  /// Logical number of parameters.
  [[nodiscard]] std::int64_t count() const;
  /// Elements of each flat buffer, padding included.
  [[nodiscard]] std::int64_t flat_elements() const { return flat_elements_; }

  // The flat buffers, shape [flat_elements]; empty before allocate().
  [[nodiscard]] const Tensor& weights() const { return weights_; }
  [[nodiscard]] const Tensor& gradients() const { return gradients_; }
  [[nodiscard]] const Tensor& first_moments() const { return first_moments_; }
  [[nodiscard]] const Tensor& second_moments() const { return second_moments_; }
  [[nodiscard]] const Tensor& compute_copy() const { return compute_copy_; }  // bf16, else empty
  /// One byte for every kAlignment elements: 1 where weight decay applies.
  [[nodiscard]] const Tensor& decay_flags() const { return decay_flags_; }

  enum class Buffer : std::uint8_t { Weights, Gradients, FirstMoments, SecondMoments };
  /// Copies one parameter's logical elements to or from the host as doubles (row-major, no padding).
  [[nodiscard]] std::vector<double> read(const Context& ctx, const Entry& entry, Buffer buffer) const;
  void write(const Context& ctx, const Entry& entry, Buffer buffer, const std::vector<double>& values);
  /// Brings the bf16 copy up to date after write().
  void refresh_compute_copy(const Context& ctx);
  /// XXH3-64 over the flat buffer of master weights, padding included.
  [[nodiscard]] std::uint64_t hash(const Context& ctx) const;

 private:
  friend class Param;
  [[nodiscard]] const Tensor& buffer(Buffer which) const;
  std::vector<Entry> entries_;  // in order of registration
  std::map<std::string, int, std::less<>> by_name_;
  std::map<std::uint64_t, int> by_id_;
  std::int64_t flat_elements_ = 0;
  bool allocated_ = false;
  Tensor weights_, gradients_, first_moments_, second_moments_, compute_copy_, decay_flags_;
};

}  // namespace graft
