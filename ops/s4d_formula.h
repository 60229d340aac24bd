#pragma once

#include <cmath>
#include <cstdint>

#include "engine/dtype.h"

namespace graft {

// One mode of a diagonal state-space layer, the same source on host and device. All of it is in double: there are only
// channels * modes evaluations a call, e^(dt A) is raised to the power of the sequence length, and (e^(dt A) - 1) / A
// and its derivative cancel where dt |A| is small.

struct Complex {
  double re = 0;
  double im = 0;
};

[[nodiscard]] GRAFT_HD inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
[[nodiscard]] GRAFT_HD inline Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
[[nodiscard]] GRAFT_HD inline Complex operator*(double a, Complex b) { return {a * b.re, a * b.im}; }
[[nodiscard]] GRAFT_HD inline Complex operator/(Complex a, Complex b) {
  const double scale = 1 / (b.re * b.re + b.im * b.im);
  return {(a.re * b.re + a.im * b.im) * scale, (a.im * b.re - a.re * b.im) * scale};
}
[[nodiscard]] GRAFT_HD inline Complex exponential(Complex z) {
  const double size = std::exp(z.re);
  return {size * std::cos(z.im), size * std::sin(z.im)};
}
/// e^z - 1 without cancellation near 0.
[[nodiscard]] GRAFT_HD inline Complex exponential_minus_one(Complex z) {
  const double half = std::sin(0.5 * z.im);
  return {std::expm1(z.re) * std::cos(z.im) - 2 * half * half, std::exp(z.re) * std::sin(z.im)};
}

/// The trained numbers of one mode; dt = exp(log_dt), A = -exp(log_a_real) + i a_imag.
struct S4dModeParameters {
  Complex c;
  double log_dt = 0;
  double log_a_real = 0;
  double a_imag = 0;

  [[nodiscard]] GRAFT_HD double dt() const { return std::exp(log_dt); }
  [[nodiscard]] GRAFT_HD Complex a() const { return {-std::exp(log_a_real), a_imag}; }
};

/// What the recurrence x_t = decay x_{t-1} + u_t, y_t = 2 Re sum (output x_t) needs.
struct S4dMode {
  Complex decay;        // e^lambda, lambda = dt A
  Complex output;       // C (e^lambda - 1) / A
  Complex chunk_decay;  // e^(chunk lambda)
  Complex chunk_slope;  // d chunk_decay / d decay = chunk e^((chunk - 1) lambda)
};

[[nodiscard]] GRAFT_HD inline S4dMode s4d_mode(const S4dModeParameters& p, std::int64_t chunk_tokens) {
  const Complex a = p.a();
  const Complex lambda = p.dt() * a;
  const auto chunk = static_cast<double>(chunk_tokens);
  return {exponential(lambda), p.c * exponential_minus_one(lambda) / a, exponential(chunk * lambda),
          chunk * exponential((chunk - 1) * lambda)};
}

/// Gradients of one mode's parameters; log_dt is shared by the modes of a channel, which are to be added.
struct S4dModeGradient {
  Complex c;
  double log_dt = 0;
  double log_a_real = 0;
  double a_imag = 0;
};

/// From the sums over tokens of dv_t x_t and dv_t dx_t/d(decay), dv being the gradient of the layer's sum of modes.
/// A quantity's D below is what d(loss) = Re(D d(quantity)) says, so that complex derivatives follow the plain chain
/// rule; the gradient of its real and imaginary parts is Re(D) and -Im(D).
[[nodiscard]] GRAFT_HD inline S4dModeGradient s4d_mode_gradient(const S4dModeParameters& p, Complex states,
                                                                Complex sensitivities) {
  const double dt = p.dt();
  const Complex a = p.a();
  const Complex lambda = dt * a;
  const Complex decay = exponential(lambda);
  const Complex factor = exponential_minus_one(lambda) / a;
  const Complex output = p.c * factor;

  const Complex d_output = 2 * states;
  const Complex d_decay = 2 * (output * sensitivities);
  const Complex d_factor = d_output * p.c;
  const Complex d_lambda = decay * (d_decay + d_factor / a);
  const Complex d_a = dt * d_lambda + -1 * (d_factor * factor / a);
  const Complex d_c = d_output * factor;
  return {{d_c.re, -d_c.im}, (d_lambda * lambda).re, d_a.re * a.re, -d_a.im};
}

}  // namespace graft
