#include "tests/support/golden.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <utility>

#include "engine/error.h"

namespace graft::test {
namespace {

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw DataError(fmt::format("{}: cannot be read", path.string()));
  nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (json.is_discarded()) throw DataError(fmt::format("{}: not JSON", path.string()));
  return json;
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

std::vector<GoldenHandler>& handlers() {
  static std::vector<GoldenHandler> entries;
  return entries;
}

bool fits(std::string_view pattern, std::string_view name) {
  if (!pattern.ends_with('*')) return pattern == name;
  return name.starts_with(pattern.substr(0, pattern.size() - 1));
}

/// A case that cannot be read has the name of its directory.
std::string name_of_case(const std::filesystem::path& directory) {
  try {
    return GoldenCase(directory).name();
  } catch (const std::exception&) {
    return directory.filename().string();
  }
}

}  // namespace

GoldenCase::GoldenCase(const std::filesystem::path& directory)
    : name_(directory.filename().string()),
      description_(read_json(directory / "case.json")),
      data_(directory / "data.safetensors") {
  const auto found = description_.find("case");
  if (found != description_.end() && found->is_string()) name_ = found->get<std::string>();
}

const nlohmann::json& GoldenCase::required(const char* table, std::string_view key) const {
  const auto found = description_.find(table);
  if (found != description_.end() && found->is_object()) {
    const auto value = found->find(key);
    if (value != found->end()) return *value;
  }
  throw DataError(fmt::format("golden case {}: case.json has no {}.{}", name_, table, key));
}

nlohmann::json GoldenCase::setting(std::string_view key) const {
  const auto config = description_.find("config");
  if (config == description_.end() || !config->is_object()) return {};
  const auto value = config->find(key);
  return value == config->end() ? nlohmann::json() : *value;
}

double GoldenCase::number(std::string_view key) const {
  const nlohmann::json& value = required("config", key);
  if (!value.is_number()) throw DataError(fmt::format("golden case {}: config.{} is no number", name_, key));
  return value.get<double>();
}

std::int64_t GoldenCase::integer(std::string_view key) const {
  const nlohmann::json& value = required("config", key);
  if (!value.is_number_integer()) throw DataError(fmt::format("golden case {}: config.{} is no integer", name_, key));
  return value.get<std::int64_t>();
}

bool GoldenCase::flag(std::string_view key) const {
  const nlohmann::json& value = required("config", key);
  if (!value.is_boolean()) throw DataError(fmt::format("golden case {}: config.{} is no boolean", name_, key));
  return value.get<bool>();
}

std::string GoldenCase::text(std::string_view key) const {
  const nlohmann::json& value = required("config", key);
  if (!value.is_string()) throw DataError(fmt::format("golden case {}: config.{} is no string", name_, key));
  return value.get<std::string>();
}

std::vector<double> GoldenCase::numbers(std::string_view key) const {
  const nlohmann::json& value = required("config", key);
  const bool valid = value.is_array() && std::all_of(value.begin(), value.end(),
                                                     [](const nlohmann::json& element) { return element.is_number(); });
  if (!valid) throw DataError(fmt::format("golden case {}: config.{} is no array of numbers", name_, key));
  return value.get<std::vector<double>>();
}

double GoldenCase::tolerance(std::string_view key) const {
  const nlohmann::json& value = required("tolerance", key);
  if (!value.is_number()) throw DataError(fmt::format("golden case {}: tolerance.{} is no number", name_, key));
  return value.get<double>();
}

std::vector<float> GoldenCase::floats(std::string_view tensor) const {
  const std::vector<double> wide = values(tensor);
  return {wide.begin(), wide.end()};
}

std::vector<std::string> GoldenCase::names(std::string_view prefix) const {
  std::vector<std::string> result;
  for (const SafetensorsEntry& tensor : data_.tensors()) {
    if (tensor.name.starts_with(prefix)) result.push_back(tensor.name.substr(prefix.size()));
  }
  std::sort(result.begin(), result.end());
  return result;
}

namespace {

constexpr double kLoosest = 0.25;        // a bound above it would let nearly everything pass
constexpr double kLoosestMaximum = 0.1;  // of largest errors

/// A case's float32 bound is 20 times the error that its reference made in float32. Errors grow with the unit of
/// rounding: 2^-24 in float32, 2^-11 in tf32, 2^-8 in bfloat16; four times the scaled error is allowed.
/// Where that is more than 0.1, because single elements cancel, whole tensors are compared: independent roundings add
/// up as squares do, so that behind 64 of them, about as many as lie between an input and its gradient, a tensor is off
/// by 8 units in the L2 norm. Four times that is allowed here too: 0.125 in bfloat16, 0.016 in tf32. (On the CPU in
/// bfloat16 the largest of all cases is 0.038.)
GoldenRun::Bound bound_of(const GoldenCase& golden, Precision precision, const char* float32) {
  if (precision == Precision::Fp64) return {golden.tolerance("float64"), false};
  const double given = golden.tolerance(float32);
  if (precision == Precision::Fp32) return {given, false};
  const double unit = precision == Precision::Tf32 ? 0x1p-11 : 0x1p-8;
  const double scaled = given / 20 * 4 * unit * 0x1p24;
  if (scaled <= kLoosestMaximum) return {scaled, false};
  return {4 * 8 * unit, true};
}

double norm_of(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

}  // namespace

GoldenRun::GoldenRun(const GoldenCase& golden, Backend backend, Precision precision)
    : golden_(golden),
      label_(
          fmt::format("golden case {} on {} in {}", golden.name(), graft::name_of(backend), graft::name_of(precision))),
      outputs_(bound_of(golden, precision, "float32_outputs")),
      gradients_(bound_of(golden, precision, "float32_gradients")),
      device_(backend, precision) {
  INFO(label_);
  CHECK(outputs_.value <= kLoosest);
  CHECK(gradients_.value <= kLoosest);
}

Tensor GoldenRun::tensor(std::string_view name, const Shape& shape) const {
  const bool floating = golden_.floating(name);
  Tensor result = device_.tensor(shape, floating ? ctx().compute_dtype() : DType::I32, golden_.values(name));
  result.set_requires_grad(floating && golden_.has(fmt::format("grad.{}", name)));
  return result;
}

Tensor GoldenRun::tensor(const Shape& shape, const std::vector<double>& values) const {
  return device_.tensor(shape, ctx().compute_dtype(), values);
}

void GoldenRun::check_output(std::string_view name, const std::vector<double>& got, double scale) {
  check(std::string(name), got, outputs_, scale);
}

void GoldenRun::check_projected_loss(const std::vector<double>& y) {
  const std::vector<double> cotangent = golden_.values("in.cotangent");
  REQUIRE(y.size() == cotangent.size());
  double loss = 0;
  double squares = 0;
  double largest_y = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    loss += y[i] * cotangent[i];
    squares += cotangent[i] * cotangent[i];
    largest_y = std::max(largest_y, std::abs(y[i]));
  }
  // Errors of random sign in every y move a sum that cancels by about max|y| |cotangent| times the relative error.
  check_output("loss", {loss}, ctx().precision == Precision::Fp64 ? 0 : largest_y * std::sqrt(squares));
}

void GoldenRun::check_gradient(std::string_view name, const std::vector<double>& got) {
  // A gate's gradient is one inner product. Where its terms cancel, its own size says nothing about its error, which is
  // in proportion to the signals that meet in it, as all gradients of the case are.
  const double scale = gradients_.of_norm && got.size() == 1 ? typical_gradient() : 0;
  check(fmt::format("grad.{}", name), got, gradients_, scale);
}

double GoldenRun::typical_gradient() const {
  double squares = 0;
  const std::vector<std::string> names = golden_.names("grad.param.");
  for (const std::string& name : names) squares += std::pow(norm_of(golden_.values("grad.param." + name)), 2);
  return names.empty() ? 0 : std::sqrt(squares / static_cast<double>(names.size()));
}

void GoldenRun::check(const std::string& name, const std::vector<double>& got, Bound bound, double scale) {
  compared_.insert(name);
  const std::vector<double> expected = golden_.values(name);
  INFO(label_ << ", tensor " << name);
  REQUIRE(got.size() == expected.size());
  std::vector<double> differences(expected.size());
  std::size_t at = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    differences[i] = std::abs(got[i] - expected[i]);
    if (!std::isfinite(differences[i])) differences[i] = std::numeric_limits<double>::infinity();
    if (differences[i] > differences[at]) at = i;
  }
  const auto size = bound.of_norm ? norm_of : largest;
  const double reference = std::max(size(expected), scale);
  const double error = reference == 0 ? size(differences) : size(differences) / reference;
  const std::string where =
      got.empty() ? "" : fmt::format("worst at element {}: {:.9g}, expected {:.9g}", at, got[at], expected[at]);
  INFO(where);
  INFO((bound.of_norm ? "L2 norm" : "largest error"));
  CHECK(error <= bound.value);
}

void GoldenRun::finish() {
  for (const char* kind : {"out.", "grad.", "loss"}) {
    for (const std::string& rest : golden_.names(kind)) {
      const std::string name = kind + rest;
      if (!compared_.contains(name)) FAIL_CHECK(label_ << ": tensor " << name << " was not compared with anything");
    }
  }
}

RegisterGolden::RegisterGolden(GoldenHandler handler) { handlers().push_back(std::move(handler)); }

const GoldenHandler* find_golden_handler(std::string_view name) {
  const GoldenHandler* best = nullptr;
  for (const GoldenHandler& handler : handlers()) {
    if (fits(handler.pattern, name) && (best == nullptr || handler.pattern.size() > best->pattern.size())) {
      best = &handler;
    }
  }
  return best;
}

std::filesystem::path golden_directory() {
  const char* given = std::getenv("GRAFT_GOLDEN_DIR");
  return given != nullptr && *given != '\0' ? given : GRAFT_SOURCE_DIR "/tests/golden";
}

std::vector<std::filesystem::path> golden_cases() {
  std::vector<std::filesystem::path> cases;
  for (const auto& entry : std::filesystem::directory_iterator(golden_directory())) {
    if (entry.is_directory()) cases.push_back(entry.path());
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

void run_golden_case(const std::filesystem::path& directory, Backend backend, Precision precision) {
  const std::string name = name_of_case(directory);
  const GoldenHandler* handler = find_golden_handler(name);
  if (handler == nullptr) {
    FAIL_CHECK("golden case " << name << " (" << directory.string()
                              << ") is of an unknown kind: no handler is registered");
    return;
  }
  if (handler->host_only && backend != Backend::Cpu) return;
  try {
    const GoldenCase golden(directory);
    // Cases of single ops hold everything in one dtype; their bfloat16 forms are compared with float64 in tests/ops.
    if (precision == Precision::Bf16 && golden.kind() != "model" && golden.kind() != "block") return;
    GoldenRun run(golden, backend, precision);
    handler->run(run);
    run.finish();
  } catch (const std::exception& error) {
    FAIL_CHECK("golden case " << name << ": " << error.what());
  }
}

}  // namespace graft::test
