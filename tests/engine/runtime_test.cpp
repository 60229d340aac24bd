#include "engine/runtime.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "engine/step_graph.h"
#include "engine/version.h"
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

TEST_CASE("runtime: a backend library of another interface is refused, naming both builds") {
  const std::string ours = "0.1.0-0123456789ab 1111aaaa2222";
  CHECK(backend_mismatch("/x/lib.so", ours, ours).empty());
  CHECK(backend_mismatch("/x/lib.so", "0.1.0-0123456789ab 3333bbbb4444+dirty", ours).empty());  // other files changed
  CHECK(backend_mismatch("/x/lib.so", "0.1.0-0123456789ab", ours).empty());
  for (const char* other : {"0.1.0-ba9876543210 1111aaaa2222", "0.2.0-0123456789ab 1111aaaa2222", "0.1.0-0123456789"}) {
    const std::string why = backend_mismatch("/x/lib.so", other, ours);
    CAPTURE(why);
    const std::string shown(other);
    CHECK(why.starts_with("/x/lib.so belongs to another build of graft: it is " + shown.substr(0, shown.find(' '))));
    CHECK(why.find("this program is 0.1.0-0123456789ab (git 1111aaaa2222)") != std::string::npos);
    CHECK(why.find("cmake --build") != std::string::npos);
  }
  CHECK(backend_mismatch("/x/lib.so", "", ours).find("does not say") != std::string::npos);
  // What is compared is there at all, and is not the commit.
  const std::string own = build_info().interface;
  CHECK(own.starts_with(std::string(build_info().version) + "-"));
  CHECK(own.size() == std::string(build_info().version).size() + 13);
  CHECK(own.find(' ') == std::string::npos);
}

}  // namespace
}  // namespace graft::test
