#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tests/support/gradcheck.h"

namespace graft::test {

/// An op that reads a sequence piece by piece: it holds the state of one sequence, takes the inputs of the next tokens
/// and the number of those before them (on the device), and gives their outputs [B, n, ...].
using Extension = std::function<Tensor(const std::vector<Tensor>& in, const Tensor& length)>;
/// Makes one with an empty state.
using ExtensionMaker = std::function<Extension(const Context& ctx)>;

/// A run tensor of zeros.
[[nodiscard]] Tensor zeros(const Context& ctx, const Shape& shape, DType dtype);

/// Tokens [first, first + count) of [B, T, C].
[[nodiscard]] HostTensor tokens_of(const HostTensor& tensor, std::int64_t first, std::int64_t count);

/// Ways to cut `tokens` tokens into pieces: at once, one by one, 3 and 1 and 5 and the rest, all but one and one.
[[nodiscard]] std::vector<std::vector<std::int64_t>> cuts_of(std::int64_t tokens);

/// Feeds the inputs to a new extension in these pieces; the inputs whose number is in `sequences` are [B, T, C] and are
/// cut. Returns the outputs [B, T, ...] of the whole sequence.
[[nodiscard]] std::vector<double> in_pieces(const TestDevice& device, const ExtensionMaker& make,
                                            const std::vector<HostTensor>& inputs,
                                            const std::vector<std::size_t>& sequences,
                                            const std::vector<std::int64_t>& cut);

/// Checks all cuts in this precision against the whole op in float64 on the CPU, on inputs rounded to the tested dtypes
/// first: max|x - reference| / max|reference| is at most `tolerance`. The same cut gives the same bits again.
void check_extension(Backend backend, Precision precision, const Op& whole, const ExtensionMaker& make,
                     const std::vector<HostTensor>& inputs, const std::vector<std::size_t>& sequences,
                     double tolerance);

}  // namespace graft::test
