#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace graft::test {

/// tests/fixtures/<name>.json: numbers of another program; "made_with" says which and how.
[[nodiscard]] inline nlohmann::json fixture(const std::string& name) {
  const auto directory = std::filesystem::path(GRAFT_SOURCE_DIR) / "tests/fixtures";
  std::ifstream file(directory / (name + ".json"));
  return nlohmann::json::parse(file);
}

}  // namespace graft::test
