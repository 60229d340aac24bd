#pragma once
// Golden cases of whole models: the model of a case with the case's weights, run and compared.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/tape.h"
#include "models/sequence_model.h"
#include "tests/support/golden.h"

namespace graft::test {

/// A parameter of ours and what the reference calls it.
struct NamePair {
  std::string ours;
  std::string reference;
  bool transposed = false;              // the reference keeps (in, out)
  std::vector<std::int64_t> rows = {};  // our row i is the reference's rows[i]; empty: the same order
};

/// The extents of an in-context-learning case, from its config and tensors.
[[nodiscard]] ModelShape shape_of_case(const GoldenCase& golden);

/// [B, N, from] -> [B, N * stride, to]: row i goes to row stride * i + offset, columns beyond `from` are left alone.
void place_rows(const std::vector<double>& values, std::int64_t from, std::vector<double>& result, std::int64_t to,
                std::int64_t stride, std::int64_t offset);
/// The other way round: the leading `columns` of every row stride * i + offset.
[[nodiscard]] std::vector<double> take_rows(const std::vector<double>& values, std::int64_t stored,
                                            std::int64_t columns, std::int64_t stride, std::int64_t offset);

/// Rows of a GPT-NeoX query_key_value map, [q, k, v] of head after head, in our order: all q, all k, all v.
[[nodiscard]] std::vector<std::int64_t> rows_of_interleaved_heads(std::int64_t heads, std::int64_t width);

/// The parameters of a case: declared by whoever is given store(), then loaded. Extents of 1 in the reference's shapes
/// do not count.
class CaseParameters {
 public:
  CaseParameters(GoldenRun& run, std::vector<NamePair> pairs) : run_(run), pairs_(std::move(pairs)) {}

  [[nodiscard]] ParameterStore& store() { return store_; }
  /// Allocates the store and fills it with the case's values.
  void load();
  /// Compares the gradients of all parameters.
  void check_gradients();

 private:
  [[nodiscard]] const ParameterStore::Entry& find(const NamePair& pair) const;
  GoldenRun& run_;
  std::vector<NamePair> pairs_;
  ParameterStore store_;
};

/// The model of a case, with the case's weights.
class CaseModel {
 public:
  CaseModel(GoldenRun& run, const ModelConfig& config, const std::vector<NamePair>& pairs)
      : CaseModel(run, config, shape_of_case(run.golden()), pairs) {}
  CaseModel(GoldenRun& run, const ModelConfig& config, const ModelShape& shape, const std::vector<NamePair>& pairs);

  [[nodiscard]] const SequenceModel& model() const { return model_; }
  [[nodiscard]] const ModelShape& shape() const { return shape_; }

  /// Runs the backward pass and compares loss and the gradients of all parameters.
  Grads backward(Tape& tape, const Tensor& loss);

 private:
  GoldenRun& run_;
  ModelShape shape_;
  CaseParameters parameters_;
  SequenceModel model_;
};

/// Vectors in, vectors out. Interleaved: x_0, y_0, x_1, ... with a prediction at every x; else one prediction at the
/// last position.
void run_vector_case(GoldenRun& run, CaseModel& model);

}  // namespace graft::test
