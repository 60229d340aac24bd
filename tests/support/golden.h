#pragma once
// Reference data: a directory a case, with case.json (what it is) and data.safetensors (its tensors). Names, shapes and
// settings are read from there; a handler knows only what a kind of case means.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/shape.h"
#include "engine/tensor.h"
#include "tests/support/device.h"
#include "train/safetensors.h"

namespace graft::test {

/// One case: its description and its tensors, named param.<name>, in.<name>, out.<name>, grad.param.<name>,
/// grad.in.<name> and loss.
class GoldenCase {
 public:
  explicit GoldenCase(const std::filesystem::path& directory);

  [[nodiscard]] const std::string& name() const { return name_; }
  /// "op", "block", "model", ...
  [[nodiscard]] std::string kind() const { return description_.value("kind", ""); }
  /// A key of "config". Throws DataError naming case and key if it is missing or of another type.
  [[nodiscard]] double number(std::string_view key) const;
  [[nodiscard]] std::int64_t integer(std::string_view key) const;
  [[nodiscard]] bool flag(std::string_view key) const;
  [[nodiscard]] std::string text(std::string_view key) const;
  [[nodiscard]] std::vector<double> numbers(std::string_view key) const;
  /// Null where the key is missing.
  [[nodiscard]] nlohmann::json setting(std::string_view key) const;
  /// A key of "tolerance".
  [[nodiscard]] double tolerance(std::string_view key) const;

  [[nodiscard]] bool has(std::string_view tensor) const { return data_.find(tensor) != nullptr; }
  [[nodiscard]] const Shape& shape(std::string_view tensor) const { return data_.at(tensor).shape; }
  [[nodiscard]] bool floating(std::string_view tensor) const { return is_floating(data_.at(tensor).dtype); }
  [[nodiscard]] std::vector<double> values(std::string_view tensor) const { return data_.read_doubles(tensor); }
  [[nodiscard]] std::vector<float> floats(std::string_view tensor) const;
  /// What follows `prefix` in the names of all tensors that start with it, sorted.
  [[nodiscard]] std::vector<std::string> names(std::string_view prefix) const;

 private:
  [[nodiscard]] const nlohmann::json& required(const char* table, std::string_view key) const;
  std::string name_;
  nlohmann::json description_;
  SafetensorsFile data_;
};

/// A case on one device in one precision. Comparisons report through doctest and are remembered: finish() fails for
/// every tensor of the case that nothing was compared with.
class GoldenRun {
 public:
  GoldenRun(const GoldenCase& golden, Backend backend, Precision precision);

  [[nodiscard]] const GoldenCase& golden() const { return golden_; }
  [[nodiscard]] TestDevice& device() { return device_; }
  [[nodiscard]] const Context& ctx() const { return device_.ctx(); }

  /// A stored tensor on the device: floating ones in the precision of activations, needing a gradient if one is
  /// stored; integers as int32.
  [[nodiscard]] Tensor tensor(std::string_view name) const { return tensor(name, golden_.shape(name)); }
  /// The same under another shape.
  [[nodiscard]] Tensor tensor(std::string_view name, const Shape& shape) const;
  /// Given values in the precision of activations.
  [[nodiscard]] Tensor tensor(const Shape& shape, const std::vector<double>& values) const;

  /// How far from the reference a tensor may be, and in which sense.
  struct Bound {
    double value = 0;
    bool of_norm = false;  // |got - golden| / |golden|; else max|got - golden| / max|golden|
  };
  /// The error within the case's bound for outputs. `scale` replaces |golden| or max|golden| where that is smaller: for
  /// sums whose terms cancel.
  void check_output(std::string_view name, const std::vector<double>& got, double scale = 0);
  /// Compares the loss of a case that is sum(y * cotangent), from y as it was computed, in the layout of the case.
  void check_projected_loss(const std::vector<double>& y);
  /// The same as check_output within the bound for gradients; `name` is the tensor's own, without "grad.".
  void check_gradient(std::string_view name, const std::vector<double>& got);

  void finish();

 private:
  void check(const std::string& name, const std::vector<double>& got, Bound bound, double scale);
  /// Root mean square of the norms of all parameters' gradients.
  [[nodiscard]] double typical_gradient() const;
  const GoldenCase& golden_;
  std::string label_;
  Bound outputs_;
  Bound gradients_;
  TestDevice device_;
  std::set<std::string> compared_;
};

/// What runs cases of one kind.
struct GoldenHandler {
  std::string pattern;  // a case's name, or its beginning and '*'; of several that fit the longest counts
  void (*run)(GoldenRun& run);
  bool host_only = false;  // computed on the host whatever the device
};

/// Adds a handler when the file that holds it is loaded; nothing lists all of them.
struct RegisterGolden {
  explicit RegisterGolden(GoldenHandler handler);
};

/// Null if no handler knows the case.
[[nodiscard]] const GoldenHandler* find_golden_handler(std::string_view name);

/// $GRAFT_GOLDEN_DIR, or the project's own cases.
[[nodiscard]] std::filesystem::path golden_directory();
/// The directories of all cases, sorted.
[[nodiscard]] std::vector<std::filesystem::path> golden_cases();

/// Runs one case with its handler; an unknown kind and whatever is thrown are failures that name the case.
void run_golden_case(const std::filesystem::path& directory, Backend backend, Precision precision);

}  // namespace graft::test
