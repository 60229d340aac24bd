// Golden cases of the classical learners that models are compared with.
#include <string>
#include <string_view>
#include <vector>

#include "tasks/baselines.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// "nearest_neighbours_3" is called "knn3" here; the others have the same name.
std::string baseline_of(std::string_view output) {
  constexpr std::string_view kNeighbours = "nearest_neighbours_";
  if (!output.starts_with(kNeighbours)) return std::string(output);
  return "knn" + std::string(output.substr(kNeighbours.size()));
}

void run_baselines(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& xs = golden.shape("in.xs");
  for (const std::string& output : golden.names("out.")) {
    run.check_output("out." + output, predict(find_baseline(baseline_of(output)), golden.floats("in.xs"),
                                              golden.floats("in.ys"), xs[0], xs[1], xs[2], 1));
  }
}

const RegisterGolden least_squares_registered{{"least_squares", run_baselines, true}};

}  // namespace
}  // namespace graft::test
