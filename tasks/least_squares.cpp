// The least-squares baselines (see tasks/baselines.h).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/error.h"
#include "tasks/baselines.h"

extern "C" {
// LAPACK, column-major. Least squares of smallest norm through QR with column pivoting and a complete orthogonal
// factorisation; rank = columns whose leading triangle has an estimated condition number below 1 / rcond.
void dgelsy_(const int* rows, const int* columns, const int* right_sides, double* a, const int* lda, double* b,
             const int* ldb, int* pivots, const double* rcond, int* rank, double* work, const int* work_size,
             int* info);
// Reciprocal condition number of a triangular matrix.
void dtrcon_(const char* norm, const char* triangle, const char* diagonal, const int* n, const double* a,
             const int* lda, double* rcond, double* work, int* integers, int* info, std::size_t, std::size_t,
             std::size_t);  // Fortran passes the lengths of texts last
}

namespace graft {
namespace {

/// Fits to a growing number of points. Only the triangle of a QR factorisation of [X y] is kept and rotated with each
/// new point: it has the same solutions as the points themselves, and a fit costs no more as points are added (a
/// prompt of 512 would take minutes otherwise). A well-conditioned triangle is solved directly, any other one by
/// dgelsy.
class GrowingLeastSquares {
 public:
  explicit GrowingLeastSquares(std::int64_t dim)
      : dim_(static_cast<int>(dim)),
        triangle_(static_cast<std::size_t>(dim * dim)),
        right_(static_cast<std::size_t>(dim)),
        row_(static_cast<std::size_t>(dim)),
        matrix_(static_cast<std::size_t>(dim * dim)),
        solution_(static_cast<std::size_t>(dim)),
        pivots_(static_cast<std::size_t>(dim)) {
    double best = 0;
    int info = 0, rank = 0;
    const int one = 1, query = -1;
    const double rcond = 0;
    dgelsy_(&dim_, &dim_, &one, matrix_.data(), &dim_, solution_.data(), &dim_, pivots_.data(), &rcond, &rank, &best,
            &query, &info);
    work_.resize(static_cast<std::size_t>(std::max(best, 4.0 * dim_ + 1)));
  }

  /// One more point: Givens rotations take its row into the triangle (Golub & Van Loan, section 5.2.5).
  void add(const float* x, double y) {
    std::copy_n(x, dim_, row_.begin());
    for (int j = 0; j < dim_; ++j) {
      if (row_[index(j)] == 0) continue;
      const double a = at(triangle_, j, j), b = row_[index(j)];
      const double radius = std::hypot(a, b), cosine = a / radius, sine = b / radius;
      at(triangle_, j, j) = radius;
      for (int k = j + 1; k < dim_; ++k) {
        const double upper = at(triangle_, j, k), lower = row_[index(k)];
        at(triangle_, j, k) = cosine * upper + sine * lower;
        row_[index(k)] = cosine * lower - sine * upper;
      }
      const double upper = right_[index(j)];
      right_[index(j)] = cosine * upper + sine * y;
      y = cosine * y - sine * upper;
    }
    ++points_;
  }

  [[nodiscard]] std::int64_t points() const { return points_; }

  /// The fit to all points so far.
  const std::vector<double>& fit() {
    if (points_ >= dim_ && well_conditioned()) {
      back_substitute();
    } else {
      solve_rank_revealing();
    }
    return solution_;
  }

 private:
  // Far from the threshold of the rank decision (about 1e-14), so both ways find full rank, and small enough that
  // they agree to more digits than anybody compares.
  static constexpr double kWellConditioned = 1e-5;

  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  double& at(std::vector<double>& matrix, int row, int column) const { return matrix[index(row + column * dim_)]; }

  bool well_conditioned() {
    double rcond = 0;
    int info = 0;
    // 3 dim doubles of work
    dtrcon_("1", "U", "N", &dim_, triangle_.data(), &dim_, &rcond, work_.data(), pivots_.data(), &info, 1, 1, 1);
    return info == 0 && rcond > kWellConditioned;
  }

  void back_substitute() {
    solution_ = right_;
    for (int j = dim_ - 1; j >= 0; --j) {
      solution_[index(j)] /= at(triangle_, j, j);
      for (int i = 0; i < j; ++i) solution_[index(i)] -= solution_[index(j)] * at(triangle_, i, j);
    }
  }

  void solve_rank_revealing() {
    // Rows no point has reached are left out, so that rounding cannot make directions of them.
    int rows = 0;
    std::fill(matrix_.begin(), matrix_.end(), 0.0);
    std::fill(solution_.begin(), solution_.end(), 0.0);
    for (int j = 0; j < dim_; ++j) {
      if (at(triangle_, j, j) == 0) continue;
      for (int k = j; k < dim_; ++k) at(matrix_, rows, k) = at(triangle_, j, k);
      solution_[index(rows++)] = right_[index(j)];
    }
    if (rows == 0) return;
    std::fill(pivots_.begin(), pivots_.end(), 0);  // every column may move
    const double rcond = std::numeric_limits<double>::epsilon() * std::max(points_, dim_);
    const int one = 1, work_size = static_cast<int>(work_.size());
    int rank = 0, info = 0;
    dgelsy_(&rows, &dim_, &one, matrix_.data(), &dim_, solution_.data(), &dim_, pivots_.data(), &rcond, &rank,
            work_.data(), &work_size, &info);
    if (info != 0) throw ArgumentError(fmt::format("least_squares: dgelsy refused argument {}", -info));
  }

  int dim_;
  int points_ = 0;
  std::vector<double> triangle_, right_;  // R [dim, dim] column-major and Q'y [dim]
  std::vector<double> row_, matrix_, solution_, work_;
  std::vector<int> pivots_;
};

void predict_least_squares(const PromptPoints& prompt, std::span<double> predictions, bool scored_only) {
  GrowingLeastSquares fits(prompt.dim);
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    if (prompt.is_stopped()) return;
    const float* x = &prompt.xs[static_cast<std::size_t>(i * prompt.dim)];
    double prediction = 0;
    if (fits.points() > 0 && prompt.is_wanted(i)) {
      const std::vector<double>& weights = fits.fit();
      for (std::int64_t j = 0; j < prompt.dim; ++j) prediction += weights[static_cast<std::size_t>(j)] * x[j];
    }
    predictions[static_cast<std::size_t>(i)] = prediction;
    if (!scored_only || prompt.is_scored(i)) fits.add(x, prompt.y(i));
  }
}

const RegisterBaseline registered{{"least_squares", [](const PromptPoints& prompt, std::span<double> predictions) {
                                     predict_least_squares(prompt, predictions, false);
                                   }}};
const RegisterBaseline registered_clean{
    {"least_squares_clean", [](const PromptPoints& prompt, std::span<double> predictions) {
       predict_least_squares(prompt, predictions, true);
     }}};

}  // namespace
}  // namespace graft
