#pragma once
// Golden cases of whole in-context-learning models: the model of a case with the case's weights, run and compared.

#include <cstdint>
#include <string>
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
  bool transposed = false;  // the reference keeps (in, out)
};

/// The extents of an in-context-learning case, from its config and tensors.
[[nodiscard]] ModelShape shape_of_case(const GoldenCase& golden);

/// [B, N, from] -> [B, N * stride, to]: row i goes to row stride * i + offset, columns beyond `from` are left alone.
void place_rows(const std::vector<double>& values, std::int64_t from, std::vector<double>& result, std::int64_t to,
                std::int64_t stride, std::int64_t offset);
/// The other way round: the leading `columns` of every row stride * i + offset.
[[nodiscard]] std::vector<double> take_rows(const std::vector<double>& values, std::int64_t stored,
                                            std::int64_t columns, std::int64_t stride, std::int64_t offset);

/// The model of a case, with the case's weights. Extents of 1 in the reference's shapes do not count.
class CaseModel {
 public:
  CaseModel(GoldenRun& run, const ModelConfig& config, const std::vector<NamePair>& pairs);

  [[nodiscard]] const SequenceModel& model() const { return model_; }
  [[nodiscard]] const ModelShape& shape() const { return shape_; }

  /// Runs the backward pass and compares loss and the gradients of all parameters.
  Grads backward(Tape& tape, const Tensor& loss);

 private:
  [[nodiscard]] const ParameterStore::Entry& find(const NamePair& pair) const;
  GoldenRun& run_;
  const GoldenCase& golden_;
  ModelShape shape_;
  ParameterStore store_;
  SequenceModel model_;
  std::vector<NamePair> pairs_;
};

/// Vectors in, vectors out. Interleaved: x_0, y_0, x_1, ... with a prediction at every x; else one prediction at the
/// last position.
void run_vector_case(GoldenRun& run, CaseModel& model);

}  // namespace graft::test
