#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/residual_norm.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

template <class A>
using Weights = std::array<A, kResidualNormMaxTerms>;

/// constant + gate * tanh(beta), of every term.
template <class A>
Weights<A> term_weights(const TermWeight (&weights)[kResidualNormMaxTerms], const ConstView& beta) {
  const A gate = beta ? std::tanh(load_element<A>(beta, 0)) : A{0};
  Weights<A> result{};
  for (std::size_t k = 0; k < result.size(); ++k) {
    result[k] = static_cast<A>(weights[k].constant) + static_cast<A>(weights[k].gate) * gate;
  }
  return result;
}

template <class A>
std::vector<A> row_of(const ConstView& view, std::int64_t width) {
  std::vector<A> result(view ? static_cast<std::size_t>(width) : 0);
  if (view) load_row(view, 0, width, result.data());
  return result;
}

template <class A>
void forward_rows(Stream& stream, const ResidualNormForward& args) {
  const std::int64_t rows = args.term[0].shape.rows();
  const std::int64_t width = args.term[0].shape.columns();
  const auto size = static_cast<std::size_t>(width);
  const bool centred = args.kind == NormKind::LayerNorm;
  std::vector<A> gain[kResidualNormMaxNorms], bias[kResidualNormMaxNorms];
  for (int i = 0; i < args.norms; ++i) {
    gain[i] = row_of<A>(args.gain[i], width);
    bias[i] = row_of<A>(args.bias[i], width);
  }
  const Weights<A> weight = term_weights<A>(args.weight, args.beta);
  parallel_for(stream, rows, kRowGrain, [&](std::int64_t first, std::int64_t last) {
    std::vector<A> x(size), buffer(size);
    for (std::int64_t row = first; row < last; ++row) {
      load_row(args.term[0], row * width, width, x.data());
      for (std::size_t j = 0; j < size; ++j) x[j] *= weight[0];
      for (int k = 1; k < args.terms; ++k) {
        load_row(args.term[k], row * width, width, buffer.data());
        const A scale = weight[static_cast<std::size_t>(k)];
        for (std::size_t j = 0; j < size; ++j) x[j] += scale * buffer[j];
      }
      if (args.sum) store_row(args.sum, row * width, width, x.data());
      const A* const at = x.data();
      A mean{0};
      if (centred) {
        mean = interleaved_sum<A>(width, [&](std::int64_t j) { return at[j]; }) / static_cast<A>(width);
        if (args.mean) store_row(args.mean, row, 1, &mean);
      }
      const A variance = interleaved_sum<A>(width, [&](std::int64_t j) { return (at[j] - mean) * (at[j] - mean); }) /
                         static_cast<A>(width);
      const A rstd = A{1} / std::sqrt(variance + static_cast<A>(args.eps));
      if (args.rstd) store_row(args.rstd, row, 1, &rstd);
      for (int i = 0; i < args.norms; ++i) {
        for (std::size_t j = 0; j < size; ++j) {
          buffer[j] = centred ? (x[j] - mean) * rstd * gain[i][j] + bias[i][j] : x[j] * (rstd * gain[i][j]);
        }
        store_row(args.normed[i], row * width, width, buffer.data());
      }
    }
  });
}

/// The rows of one block: gradients of terms, and what the block adds to those of gains, biases and beta.
template <class A>
class BackwardBlock {
 public:
  BackwardBlock(const ResidualNormBackward& args, const std::vector<A> (&gain)[kResidualNormMaxNorms],
                const Weights<A>& weight)
      : args_(args),
        gain_(gain),
        weight_(weight),
        width_(args.x.shape.columns()),
        size_(static_cast<std::size_t>(width_)),
        centred_(args.kind == NormKind::LayerNorm),
        d_(size_),
        xhat_(size_),
        dxhat_(size_),
        buffer_(size_),
        sums_(static_cast<std::size_t>(residual_norm_columns(args.kind, args.norms, width_)), A{0}) {
    for (int i = 0; i < args.norms; ++i) has_normed_ = has_normed_ || args.dy[i];
  }

  void run(std::int64_t row) {
    if (args_.dsum) {
      load_row(args_.dsum, row * width_, width_, d_.data());
    } else {
      std::fill(d_.begin(), d_.end(), A{0});
    }
    if (has_normed_) add_norms(row);
    for (int k = 0; k < args_.terms; ++k) {
      if (args_.dbeta && args_.term[k]) add_beta(row, k);
    }
    for (int k = 0; k < args_.terms; ++k) {
      if (!args_.dterm[k]) continue;
      for (std::size_t j = 0; j < size_; ++j) buffer_[j] = weight_[static_cast<std::size_t>(k)] * d_[j];
      store_gradient(args_.dterm[k], row * width_, width_, buffer_.data());
    }
  }
  /// [norms, 1 or 2, D]
  [[nodiscard]] const std::vector<A>& sums() const { return sums_; }
  /// sum_k gate_k <d, t_k>
  [[nodiscard]] A beta_sum() const { return beta_sum_; }

 private:
  void add_norms(std::int64_t row) {
    load_row(args_.x, row * width_, width_, xhat_.data());
    const A mean = centred_ ? load_element<A>(args_.mean, row) : A{0};
    const A rstd = load_element<A>(args_.rstd, row);
    for (std::size_t j = 0; j < size_; ++j) xhat_[j] = (xhat_[j] - mean) * rstd;
    std::fill(dxhat_.begin(), dxhat_.end(), A{0});
    A* sums = sums_.data();
    for (int i = 0; i < args_.norms; ++i, sums += (centred_ ? 2 : 1) * width_) {
      if (!args_.dy[i]) continue;
      load_row(args_.dy[i], row * width_, width_, buffer_.data());
      for (std::size_t j = 0; j < size_; ++j) {
        sums[j] += buffer_[j] * xhat_[j];
        dxhat_[j] += buffer_[j] * gain_[i][j];
      }
      for (std::size_t j = 0; centred_ && j < size_; ++j) sums[size_ + j] += buffer_[j];
    }
    // dxhat minus its components along xhat and, in a layer norm, along the constant vector
    const A* const dxhat = dxhat_.data();
    const A* const xhat = xhat_.data();
    const auto divisor = static_cast<A>(width_);
    const A along_one =
        centred_ ? interleaved_sum<A>(width_, [&](std::int64_t j) { return dxhat[j]; }) / divisor : A{0};
    const A along_xhat = interleaved_sum<A>(width_, [&](std::int64_t j) { return dxhat[j] * xhat[j]; }) / divisor;
    for (std::size_t j = 0; j < size_; ++j) d_[j] += rstd * (dxhat[j] - along_one - xhat[j] * along_xhat);
  }

  void add_beta(std::int64_t row, int k) {
    load_row(args_.term[k], row * width_, width_, buffer_.data());
    const A* const d = d_.data();
    const A* const term = buffer_.data();
    beta_sum_ += static_cast<A>(args_.weight[k].gate) *
                 interleaved_sum<A>(width_, [&](std::int64_t j) { return d[j] * term[j]; });
  }

  const ResidualNormBackward& args_;
  const std::vector<A> (&gain_)[kResidualNormMaxNorms];
  const Weights<A>& weight_;
  std::int64_t width_;
  std::size_t size_;
  bool centred_;
  bool has_normed_ = false;
  std::vector<A> d_, xhat_, dxhat_, buffer_, sums_;
  A beta_sum_{0};
};

template <class A>
void backward_rows(Stream& stream, const ResidualNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.x.shape.columns();
  std::vector<A> gain[kResidualNormMaxNorms];
  for (int i = 0; i < args.norms; ++i) gain[i] = row_of<A>(args.gain[i], width);
  const Weights<A> weight = term_weights<A>(args.weight, args.beta);
  const std::int64_t blocks = residual_norm_row_blocks(rows);
  const std::int64_t rows_a_block = ceil_div(rows, blocks);
  const std::int64_t columns = residual_norm_columns(args.kind, args.norms, width);
  A* const partial = args.partial ? args.partial.as<A>() : nullptr;
  A* const beta_partial = args.partial ? partial + blocks * columns : nullptr;

  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    BackwardBlock<A> part(args, gain, weight);
    const std::int64_t last = std::min(rows, (block + 1) * rows_a_block);
    for (std::int64_t row = block * rows_a_block; row < last; ++row) part.run(row);
    if (partial == nullptr) return;
    std::copy(part.sums().begin(), part.sums().end(), partial + block * columns);
    beta_partial[block] = part.beta_sum();
  });
  if (partial == nullptr) return;

  std::vector<A> sums(static_cast<std::size_t>(columns), A{0});
  A beta_sum{0};
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += partial[block * columns + static_cast<std::int64_t>(j)];
    beta_sum += beta_partial[block];
  }
  const A* from = sums.data();
  for (int i = 0; i < args.norms; ++i) {
    store_gradient(args.dgain[i], 0, width, from);
    from += width;
    if (args.kind != NormKind::LayerNorm) continue;
    store_gradient(args.dbias[i], 0, width, from);
    from += width;
  }
  if (!args.dbeta) return;
  const A gate = std::tanh(load_element<A>(args.beta, 0));
  const A dbeta = (A{1} - gate * gate) * beta_sum;
  store_gradient(args.dbeta, 0, 1, &dbeta);
}

void forward(Stream& stream, const ResidualNormForward& args) {
  with_accumulate(args.gain[0].dtype, [&](auto a) { forward_rows<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const ResidualNormBackward& args) {
  with_accumulate(args.gain[0].dtype, [&](auto a) { backward_rows<decltype(a)>(stream, args); });
}

const Register registered_forward{residual_norm_forward, Backend::Cpu, forward};
const Register registered_backward{residual_norm_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
