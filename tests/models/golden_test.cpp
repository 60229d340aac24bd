// Compares with reference data, every case in $GRAFT_GOLDEN_DIR. What a kind of case means is in the files
// golden_*_test.cpp beside this one, which register themselves.
#include <doctest/doctest.h>

#include <filesystem>
#include <vector>

#include "tests/support/golden.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

void run_all(Backend backend, Precision precision) {
  const std::vector<std::filesystem::path> cases = golden_cases();
  INFO("directory " << golden_directory().string());
  CHECK_FALSE(cases.empty());
  for (const std::filesystem::path& directory : cases) run_golden_case(directory, backend, precision);
}

TEST_CASE("golden cases on the CPU in float64") { run_all(Backend::Cpu, Precision::Fp64); }

TEST_CASE("golden cases on the CPU in float32") { run_all(Backend::Cpu, Precision::Fp32); }

TEST_CASE("golden cases on the CPU in bfloat16") { run_all(Backend::Cpu, Precision::Bf16); }

TEST_CASE("golden cases on CUDA in tf32 and bfloat16") {
  if (skip_cuda()) return;
  run_all(Backend::Cuda, Precision::Tf32);
  run_all(Backend::Cuda, Precision::Bf16);
}

TEST_CASE("golden cases on CUDA in float32") {
  if (skip_cuda()) return;
  run_all(Backend::Cuda, Precision::Fp32);
}

}  // namespace
}  // namespace graft::test
