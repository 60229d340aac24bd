// main() of every test program. Beside doctest's options it takes --graft-list, which the build uses to
// register the tests, and --graft-cuda, given to entries that need a GPU: without one they are skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/runtime.h"

namespace {

constexpr int kSkipped = 77;  // what ctest takes for "skipped"

/// What a case is, by its name and suite.
struct Kind {
  bool cuda = false;    // the name holds "CUDA"
  bool golden = false;  // the name holds "golden"
  bool slow = false;    // the suite is called "slow"

  auto operator<=>(const Kind&) const = default;

  [[nodiscard]] std::string name() const {
    std::string text = cuda ? "cuda" : "cpu";
    if (golden) text += "_golden";
    if (slow) text += "_slow";
    return text;
  }

  /// doctest options that select exactly the cases of this kind, separated by '|'.
  [[nodiscard]] std::string filters() const {
    std::string text = slow ? "--test-suite=slow" : "--test-suite-exclude=slow";
    if (cuda && golden) return text + "|--test-case=*CUDA*golden*,*golden*CUDA*|--graft-cuda";
    if (cuda) return text + "|--test-case=*CUDA*|--test-case-exclude=*golden*|--graft-cuda";
    if (golden) return text + "|--test-case=*golden*|--test-case-exclude=*CUDA*";
    return text + "|--test-case-exclude=*CUDA*,*golden*";
  }
};

Kind kind_of(const doctest::TestCaseData& test) {
  const std::string_view name = test.m_name;
  return {name.find("CUDA") != std::string_view::npos, name.find("golden") != std::string_view::npos,
          test.m_test_suite != nullptr && std::strcmp(test.m_test_suite, "slow") == 0};
}

/// Counts the cases that a decorator skipped. Cases left out by a filter do not reach it as skipped.
struct SkipCounter : doctest::IReporter {
  inline static int cuda = 0;

  explicit SkipCounter(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats&) override {}
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData& test) override {
    if (test.m_skip && kind_of(test).cuda) ++cuda;
  }
};

/// Prints one line a file and kind: "<file>|<kind>|<filters>".
struct Lister : SkipCounter {
  using SkipCounter::SkipCounter;
  void report_query(const doctest::QueryData& query) override {
    std::map<std::string, std::set<Kind>> files;
    for (unsigned i = 0; i < query.num_data; ++i) {
      files[query.data[i]->m_file.c_str()].insert(kind_of(*query.data[i]));
    }
    for (const auto& [file, kinds] : files) {
      for (const Kind& kind : kinds)
        std::printf("%s|%s|%s\n", file.c_str(), kind.name().c_str(), kind.filters().c_str());
    }
  }
};

DOCTEST_REGISTER_LISTENER("skips", 1, SkipCounter);
DOCTEST_REGISTER_REPORTER("graft", 1, Lister);

bool take(std::vector<char*>& arguments, std::string_view option) {
  return std::erase_if(arguments, [&](const char* argument) { return option == argument; }) != 0;
}

int list_tests(const char* program) {
  doctest::Context context;
  const char* arguments[] = {program, "--list-test-cases", "--no-skip", "--reporters=graft"};
  context.applyCommandLine(4, arguments);
  return context.run();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  if (take(arguments, "--graft-list")) return list_tests(argv[0]);

  std::string why;
  if (take(arguments, "--graft-cuda") && !graft::cuda_available(&why)) {
    // Where a GPU must be there, a test that skips itself would hide its absence.
    const char* required = std::getenv("GRAFT_REQUIRE_CUDA");
    const bool fail = required != nullptr && *required != '\0' && std::strcmp(required, "0") != 0;
    std::printf("%s: %s\n", fail ? "failed, GRAFT_REQUIRE_CUDA is set" : "skipped", why.c_str());
    return fail ? 1 : kSkipped;
  }

  doctest::Context context;
  context.setOption("case-sensitive", true);
  context.applyCommandLine(static_cast<int>(arguments.size()), arguments.data());
  const int result = context.run();
  if (context.shouldExit()) return result;
  // With a filter on names the cases were left out on purpose.
  const bool filtered = std::any_of(arguments.begin(), arguments.end(), [](const char* argument) {
    return std::string_view(argument).find("-test-case") != std::string_view::npos;
  });
  if (SkipCounter::cuda > 0 && !filtered) {
    static_cast<void>(graft::cuda_available(&why));
    std::printf("note: %d CUDA cases skipped: %s\n", SkipCounter::cuda, why.c_str());
  }
  return result;
}
