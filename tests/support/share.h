#pragma once

#include <cstdint>
#include <string>

namespace graft::test {

/// The part of a long test case that one of several processes takes: every N-th item from the K-th on. The N shares
/// have no item in common and leave none out.
class Share {
 public:
  /// "K/N" with 0 <= K < N; null: everything. std::runtime_error for another text.
  explicit Share(const char* text);

  /// Whether the next item is in this share; to be asked once for every item, whoever takes it.
  [[nodiscard]] bool next() { return items_++ % of_ == index_; }

 private:
  std::int64_t index_ = 0;
  std::int64_t of_ = 1;
  std::int64_t items_ = 0;
};

/// Whether GRAFT_TEST_SHARD is set ("0/1" is everything): the process runs under a tool that slows kernels down a
/// hundredfold or more, so that a long test case is shared among processes. Items are counted over a process, so that
/// all shares need the same filter on test cases.
[[nodiscard]] bool is_shared();

/// Whether this process is to run the next item of a test case: always, unless GRAFT_TEST_SHARD = "K/N" gives it a
/// Share. Prints the name of an item of a share, if it has one, so that the logs tell who ran what.
[[nodiscard]] bool in_share(const std::string& item = {});

/// `steps`, or the number in `bound` if that is less; null: no bound. std::runtime_error if it is no number from 1 on.
[[nodiscard]] std::int64_t steps_within(std::int64_t steps, const char* bound);

/// How many training steps a case makes that needs no certain number of them: `steps`, at most GRAFT_TEST_STEPS where
/// that is set. For single items that are long under a tool, which a share cannot make shorter.
[[nodiscard]] std::int64_t test_steps(std::int64_t steps);

}  // namespace graft::test
