#include "tests/reference/selective_scan.h"

#include <cmath>

namespace graft::test {

ScanSolution sequential_scan(const ScanProblem& p) {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  ScanSolution solution;
  solution.y.resize(size(p.batch * p.tokens * p.width));
  solution.final_state.resize(size(p.batch * p.width * p.state));
  for (std::int64_t sequence = 0; sequence < p.batch; ++sequence) {
    for (std::int64_t channel = 0; channel < p.width; ++channel) {
      std::vector<double> h(size(p.state), 0.0);
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        const std::int64_t row = sequence * p.tokens + t;
        const std::size_t i = size(row * p.width + channel);
        double dt = p.delta[i] + (p.bias.empty() ? 0.0 : p.bias[size(channel)]);
        if (p.softplus) dt = std::log(1 + std::exp(dt));
        double y = p.skip.empty() ? 0.0 : p.skip[size(channel)] * p.u[i];
        for (std::int64_t n = 0; n < p.state; ++n) {
          const std::size_t j = size(row * p.state + n);
          h[size(n)] = std::exp(dt * p.a[size(channel * p.state + n)]) * h[size(n)] + dt * p.b[j] * p.u[i];
          y += p.c[j] * h[size(n)];
        }
        if (!p.z.empty()) y *= p.z[i] / (1 + std::exp(-p.z[i]));
        solution.y[i] = y;
      }
      for (std::int64_t n = 0; n < p.state; ++n) {
        solution.final_state[size((sequence * p.width + channel) * p.state + n)] = h[size(n)];
      }
    }
  }
  return solution;
}

}  // namespace graft::test
