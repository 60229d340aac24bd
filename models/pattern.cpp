#include "models/pattern.h"

#include <cctype>
#include <utility>

#include "engine/require.h"

namespace graft {
namespace {

constexpr std::size_t kMaxLayers = 1000;
constexpr int kMaxDepth = 16;
constexpr std::size_t kMaxBranches = 3;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::vector<PatternLayer> parse() {
    std::vector<PatternLayer> layers = sequence(0);
    check(at_ == text_.size(), "\")\" without \"(\"");
    check(!layers.empty(), "no layers, expected something like \"(AF)*12\"");
    return layers;
  }

 private:
  void check(bool ok, std::string_view what) const {
    if (!ok) throw ArgumentError(fmt::format("pattern \"{}\", character {}: {}", text_, at_ + 1, what));
  }
  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  std::vector<PatternLayer> sequence(int depth) {
    check(depth <= kMaxDepth, "parentheses nested too deeply, expected at most 16");
    std::vector<PatternLayer> layers;
    for (;;) {
      skip_spaces();
      if (at_ == text_.size() || text_[at_] == ')') return layers;
      const std::vector<PatternLayer> item = one_item(depth);
      const std::size_t count = repeat_count();
      check(item.empty() || count <= kMaxLayers / item.size(), "more than 1000 layers");
      for (std::size_t i = 0; i < count; ++i) layers.insert(layers.end(), item.begin(), item.end());
      check(layers.size() <= kMaxLayers, "more than 1000 layers");
    }
  }

  std::vector<PatternLayer> one_item(int depth) {
    if (text_[at_] == '(') {
      ++at_;
      std::vector<PatternLayer> inner = sequence(depth + 1);
      check(at_ < text_.size(), "the end, expected \")\"");
      check(!inner.empty(), "empty parentheses");
      ++at_;
      return inner;
    }
    if (text_[at_] == '[') return {brackets()};
    return {{{symbol("\"(\", \"[\" or ")}, 1}};
  }

  PatternLayer brackets() {
    ++at_;
    PatternLayer layer;
    bool barred = false;
    for (;;) {
      skip_spaces();
      check(at_ < text_.size(), "the end, expected \"]\"");
      if (text_[at_] == ']' || text_[at_] == '|') {
        check(layer.branches.size() > (barred ? layer.gated : 0), "expected a mixer's symbol before this");
        if (text_[at_] == ']') break;
        check(!barred, "a second \"|\", expected one at most");
        barred = true;
        layer.gated = layer.branches.size();
        ++at_;
        continue;
      }
      check(layer.branches.size() < kMaxBranches, "more than 3 mixers side by side");
      layer.branches.push_back(symbol("\"]\", \"|\" or "));
    }
    ++at_;
    if (!barred) layer.gated = layer.branches.size();
    return layer;
  }

  std::string symbol(std::string_view alternatives) {
    check(std::isupper(static_cast<unsigned char>(text_[at_])) != 0,
          fmt::format("expected {}a mixer's symbol, which starts with an upper-case letter", alternatives));
    const std::size_t first = at_++;
    while (at_ < text_.size() && (std::islower(static_cast<unsigned char>(text_[at_])) != 0 ||
                                  std::isdigit(static_cast<unsigned char>(text_[at_])) != 0)) {
      ++at_;
    }
    return std::string(text_.substr(first, at_ - first));
  }

  std::size_t repeat_count() {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != '*') return 1;
    ++at_;
    skip_spaces();
    std::size_t count = 0;
    const std::size_t first = at_;
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) != 0 && count <= kMaxLayers) {
      count = count * 10 + static_cast<std::size_t>(text_[at_++] - '0');
    }
    check(at_ > first && count >= 1, "expected a count of at least 1 after \"*\"");
    return count;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::vector<PatternLayer> expand_pattern(std::string_view pattern) { return Parser(pattern).parse(); }

}  // namespace graft
