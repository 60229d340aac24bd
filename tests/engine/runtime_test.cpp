#include "engine/runtime.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "engine/step_graph.h"
#include "tests/support/parity.h"
#include "tests/support/small_run.h"

namespace graft::test {
namespace {

constexpr int kSteps = 30;

/// What a captured run leaves behind.
std::vector<std::byte> train(std::uint64_t seed, int threads, Precision precision = Precision::Fp32) {
  SmallRun run(Backend::Cpu, precision, seed, threads, 700);
  StepGraph graph(run.device().ctx(), run.device().runtime().reserve_range(), "train step",
                  [&](const Context& ctx) { run.train(ctx); });
  graph.plan();
  graph.run_eager();
  graph.capture();
  for (int step = 1; step < kSteps; ++step) graph.replay();
  return run.fingerprint();
}

TEST_CASE("runtime: results do not depend on the number of threads") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    const std::vector<std::byte> one = train(1, 1, precision);
    CHECK(train(1, 2, precision) == one);
    CHECK(train(1, 5, precision) == one);
  }
}

TEST_CASE("runtime: two runs at the same time are two runs alone") {
  const std::vector<std::byte> first = train(1, 2);
  const std::vector<std::byte> second = train(2, 2);
  CHECK(first != second);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::byte> first_beside;
    std::vector<std::byte> second_beside;
    std::thread other([&] { first_beside = train(1, 2); });
    second_beside = train(2, 2);
    other.join();
    CHECK(first_beside == first);
    CHECK(second_beside == second);
  }
}

TEST_CASE("runtime: without a GPU the error says what was looked for") {
  std::string why;
  if (cuda_available(&why)) return;
  CHECK_FALSE(why.empty());
  try {
    static_cast<void>(open_runtime({Backend::Cuda, 0}));
    FAIL_CHECK("no error");
  } catch (const EnvironmentError& error) {
    const std::string message = error.what();
    CHECK(message.find(why) != std::string::npos);
    CHECK(message.find("--device cpu") != std::string::npos);
    CHECK(error.exit_code() == ExitCode::kEnvironment);
  }
}

}  // namespace
}  // namespace graft::test
