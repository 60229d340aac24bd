#include "models/mixer.h"

#include <map>
#include <utility>

#include "engine/require.h"

namespace graft {
namespace {

std::map<std::string, MixerEntry, std::less<>>& mixers() {
  static std::map<std::string, MixerEntry, std::less<>> entries;
  return entries;
}

}  // namespace

RegisterMixer::RegisterMixer(MixerEntry entry) {
  std::string symbol = entry.symbol;
  mixers().emplace(std::move(symbol), std::move(entry));
}

const MixerEntry& find_mixer(std::string_view symbol) {
  const auto found = mixers().find(symbol);
  if (found != mixers().end()) return found->second;
  std::string known;
  for (const auto& [key, entry] : mixers())
    known += fmt::format("{}{} ({})", known.empty() ? "" : ", ", key, entry.name);
  throw ArgumentError(fmt::format("pattern: no mixer is called \"{}\", expected one of {}", symbol, known));
}

std::vector<MixerEntry> registered_mixers() {
  std::vector<MixerEntry> result;
  for (const auto& [symbol, entry] : mixers()) result.push_back(entry);
  return result;
}

}  // namespace graft
