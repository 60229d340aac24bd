#include "models/pattern.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/settings.h"
#include "models/mixer.h"
#include "models/model_config.h"
#include "models/sequence_model.h"

namespace graft::test {
namespace {

std::string joined(std::string_view pattern) {
  std::string text;
  for (const PatternLayer& layer : expand_pattern(pattern)) {
    text += text.empty() ? "" : " ";
    for (std::size_t i = 0; i < layer.branches.size(); ++i) {
      if (layer.has_gate() && i == layer.gated) text += "|";
      text += (i == 0 || (layer.has_gate() && i == layer.gated) ? "" : "+") + layer.branches[i];
    }
  }
  return text;
}

TEST_CASE("pattern: symbols, groups and counts") {
  CHECK(joined("A") == "A");
  CHECK(joined("AF") == "A F");
  CHECK(joined("(AF)*3") == "A F A F A F");
  CHECK(joined("M(AM)*2") == "M A M A M");
  CHECK(joined("A*3F") == "A A A F");
  CHECK(joined("M2S4dA") == "M2 S4d A");
  CHECK(joined("(A*2(MF)*2)*2") == "A A M F M F A A M F M F");
  CHECK(joined("((((A))))") == "A");
  CHECK(joined("  ( A F ) * 2  M ") == "A F A F M");
  CHECK(joined("A*1") == "A");
}

TEST_CASE("pattern: mixers side by side, and behind a gate") {
  CHECK(joined("[AF]*2") == "A+F A+F");
  CHECK(joined("(M2[AF])*2") == "M2 A+F M2 A+F");
  CHECK(joined("[M|AF]") == "M|A+F");
  CHECK(joined("[ A F | M2 ] M") == "A+F|M2 M");
  CHECK(joined("[A]") == "A");
  CHECK(expand_pattern("[AF]")[0].gated == 2);
  CHECK_FALSE(expand_pattern("[AF]")[0].has_gate());
  CHECK(expand_pattern("[M|AF]")[0].gated == 1);
  CHECK(expand_pattern("[AF|M]")[0].gated == 2);
}

TEST_CASE("pattern: up to a thousand layers and sixteen parentheses") {
  CHECK(expand_pattern("A*1000").size() == 1000);
  CHECK(expand_pattern("((AF)*50)*10").size() == 1000);
  CHECK(expand_pattern(std::string(16, '(') + "A" + std::string(16, ')')).size() == 1);
}

TEST_CASE("pattern: mistakes are refused with their place") {
  struct Mistake {
    std::string pattern;
    const char* message;
  };
  const Mistake mistakes[] = {
      {"", "no layers"},
      {"   ", "no layers"},
      {"()", "empty parentheses"},
      {"A( )", "character 4: empty parentheses"},
      {"(AF", "character 4: the end, expected \")\""},
      {"(A(F)", "expected \")\""},
      {"AF)", "character 3: \")\" without \"(\""},
      {"af", "character 1: expected"},
      {"A-F", "character 2: expected"},
      {"2A", "character 1: expected"},
      {"*2", "character 1: expected"},
      {"A*", "expected a count"},
      {"A*0", "expected a count of at least 1"},
      {"A*-1", "expected a count"},
      {"A**2", "expected a count"},
      {"A*1001", "more than 1000 layers"},
      {"A*500F*501", "more than 1000 layers"},
      {"((A*1000)*1000)*1000", "more than 1000 layers"},
      {"A*99999999999999999999999999", "more than 1000 layers"},
      {std::string(17, '(') + "A" + std::string(17, ')'), "nested too deeply"},
      {std::string(100000, '('), "nested too deeply"},
      {"A\xc3\x84", "character 2: expected"},
      {"[]", "character 2: expected a mixer's symbol before this"},
      {"[A|]", "character 4: expected a mixer's symbol before this"},
      {"[|A]", "character 2: expected a mixer's symbol before this"},
      {"[A|F|M]", "character 5: a second \"|\""},
      {"[AF", "character 4: the end, expected \"]\""},
      {"[AFMA]", "character 5: more than 3 mixers"},
      {"[(AF)]", "character 2: expected \"]\", \"|\" or a mixer's symbol"},
      {"A]", "character 2: expected"},
      {"A|F", "character 2: expected"},
  };
  for (const Mistake& mistake : mistakes) {
    CAPTURE(mistake.pattern.substr(0, 40));
    CHECK_THROWS_WITH_AS(static_cast<void>(expand_pattern(mistake.pattern)), doctest::Contains(mistake.message),
                         ArgumentError);
  }
}

TEST_CASE("pattern: a symbol without a mixer is refused with those that exist") {
  ParameterStore store;
  ModelConfig config;
  config.pattern = "AFZz9";
  CHECK_THROWS_WITH_AS(SequenceModel(store, config, {3, 1, 0, 10}),
                       doctest::Contains("no mixer is called \"Zz9\", expected one of A (attention)"), ArgumentError);
  CHECK(find_mixer("A").name == "attention");
  CHECK(find_mixer("F").name == "mlp");
  for (const MixerEntry& entry : registered_mixers()) {
    CAPTURE(entry.symbol);
    CHECK(joined(entry.symbol) == entry.symbol);  // a pattern can name it
    CHECK_FALSE(entry.doc.empty());
  }
}

}  // namespace
}  // namespace graft::test
