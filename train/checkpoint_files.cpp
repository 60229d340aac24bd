#include "train/checkpoint_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/require.h"
#include "train/checkpoint_state.h"
#include "train/file_io.h"
#include "train/json_lines.h"
#include "train/safetensors.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormat = 1;
constexpr std::uint64_t kMaxManifest = 1U << 20U;
// What is read may be longer than what is written, a kilobyte or two: earlier versions kept a row for every step of a
// log interval.
constexpr std::uint64_t kMaxState = 1U << 28U;
constexpr std::uint64_t kMaxStateWritten = 1U << 24U;
constexpr std::size_t kGather = std::size_t{1} << 20U;  // rows with gaps are written in pieces of about this size
constexpr const char* kManifest = "manifest.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kState = "state.json";
constexpr std::array<const char*, 3> kFiles = {kModel, kOptimizer, kState};
constexpr std::string_view kPrefix = "step_";

std::string checksum_of(json manifest) {
  manifest.erase("checksum");
  return digest_of_text(manifest.dump()).xxh3_128;  // object keys are sorted: one text for one content
}

std::string text_of(const json& manifest) { return manifest.dump(1) + "\n"; }

void check_size(const json& manifest, const fs::path& checkpoint, const char* name) {
  const auto expected = manifest["files"][name]["bytes"].get<std::uint64_t>();
  const std::uint64_t actual = InputFile(checkpoint / name).size();
  if (actual != expected) {
    throw DataError(
        fmt::format("checkpoint: {}: {} bytes, expected {}", (checkpoint / name).string(), actual, expected));
  }
}

std::vector<CheckpointTensor> read_tensors(const fs::path& path) {
  const SafetensorsFile file(path);
  std::vector<CheckpointTensor> tensors;
  tensors.reserve(file.tensors().size());
  for (const SafetensorsEntry& entry : file.tensors()) {
    tensors.push_back({entry.name, entry.dtype, entry.shape, std::vector<std::byte>(entry.end - entry.begin)});
    file.read(entry, tensors.back().data);
  }
  return tensors;
}

void append_rows(SafetensorsWriter& writer, const CheckpointTensorView& tensor) {
  if (tensor.stride == tensor.row_bytes || tensor.rows <= 1) {
    writer.append(tensor.name, std::span(tensor.data, tensor.bytes()));
    return;
  }
  std::vector<std::byte> piece;
  for (std::size_t row = 0; row < tensor.rows; ++row) {
    const std::byte* from = tensor.data + row * tensor.stride;
    piece.insert(piece.end(), from, from + tensor.row_bytes);
    if (piece.size() < kGather && row + 1 < tensor.rows) continue;
    writer.append(tensor.name, piece);
    piece.clear();
  }
}

FileDigest write_tensors(const fs::path& path, const std::vector<CheckpointTensorView>& tensors, std::int64_t step) {
  std::vector<SafetensorsDeclaration> declarations;
  std::map<std::string_view, const CheckpointTensorView*> by_name;
  for (const CheckpointTensorView& tensor : tensors) {
    declarations.push_back({tensor.name, tensor.dtype, tensor.shape});
    by_name[tensor.name] = &tensor;
  }
  SafetensorsWriter writer(path, std::move(declarations), {{"producer", "graft"}, {"step", fmt::format("{}", step)}});
  for (const auto& declaration : writer.order()) append_rows(writer, *by_name.at(declaration.name));
  return writer.finish();
}

/// Throws DataError if `text` is longer than what is accepted of the file.
void require_length(const fs::path& path, const std::string& text, std::uint64_t most) {
  if (text.size() <= most) return;
  throw DataError(
      fmt::format("{} would hold {} bytes, and at most {} would be read", path.string(), text.size(), most));
}

/// The state in the text of a file. Throws DataError.
json state_of(const std::string& text, std::int64_t step, const fs::path& file) {
  json state = parse_json(text);
  if (state.is_discarded()) throw DataError(fmt::format("checkpoint: {}: not JSON", file.string()));
  check_state(state, step, file);
  return state;
}

FileDigest write_text(const fs::path& path, const std::string& text) {
  OutputFile file(path);
  file.append(text);
  return file.finish();
}

/// Index of the first element of a row that is not finite; -1 if all are. An exponent of ones is infinity or NaN.
template <class Bits>
std::int64_t first_nonfinite(const std::byte* row, std::size_t bytes, Bits exponent) {
  // A branch-free pass first: it runs at the speed of memory, and nearly always it is all there is to do.
  Bits found = 0;
  const std::size_t count = bytes / sizeof(Bits);
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, row + i * sizeof(Bits), sizeof(Bits));
    found |= static_cast<Bits>((bits & exponent) == exponent);
  }
  if (found == 0) return -1;
  for (std::size_t i = 0;; ++i) {
    Bits bits;
    std::memcpy(&bits, row + i * sizeof(Bits), sizeof(Bits));
    if ((bits & exponent) == exponent) return static_cast<std::int64_t>(i);
  }
}

std::string nonfinite_element(const CheckpointTensorView& tensor) {
  for (std::size_t row = 0; row < tensor.rows; ++row) {
    const std::byte* data = tensor.data + row * tensor.stride;
    std::int64_t column = -1;
    double value = 0;
    if (tensor.dtype == DType::F32) {
      column = first_nonfinite<std::uint32_t>(data, tensor.row_bytes, 0x7f800000U);
      float narrow = 0;
      if (column >= 0) std::memcpy(&narrow, data + 4 * column, 4);
      value = static_cast<double>(narrow);
    } else if (tensor.dtype == DType::F64) {
      column = first_nonfinite<std::uint64_t>(data, tensor.row_bytes, 0x7ff0000000000000U);
      if (column >= 0) std::memcpy(&value, data + 8 * column, 8);
    }
    if (column < 0) continue;
    const std::size_t index = row * (tensor.row_bytes / size_of(tensor.dtype)) + static_cast<std::size_t>(column);
    return fmt::format("{}[{}] is {}", tensor.name, index, std::isnan(value) ? "nan" : (value > 0 ? "inf" : "-inf"));
  }
  return {};
}

}  // namespace

std::optional<std::int64_t> step_of_name(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc{} || end != digits.data() + digits.size() || step < 0) return std::nullopt;
  if (fmt::format("{}", step) != digits) return std::nullopt;
  return step;
}

std::string name_of_step(std::int64_t step) { return fmt::format("{}{}", kPrefix, step); }

fs::path without_trailing_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

json read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kManifest;
  const std::string text = read_text_file(path, kMaxManifest);
  const json manifest = parse_json(text);
  const auto fail = [&](const char* what) { throw DataError(fmt::format("checkpoint: {}: {}", path.string(), what)); };
  if (!manifest.is_object() || !manifest.contains("checksum")) fail("not a manifest");
  if (manifest["checksum"] != checksum_of(manifest)) fail("its checksum is wrong: the file is damaged");
  if (text != text_of(manifest)) fail("not as it was written: the file is damaged");
  if (manifest.value("format", json()) != kFormat) {
    fail("written in another format; this program reads format 1");
  }
  const auto files = manifest.find("files");
  if (files == manifest.end() || !files->is_object()) fail("does not list the files");
  for (const char* name : kFiles) {
    const auto file = files->find(name);
    if (file == files->end() || !file->is_object() || !file->value("bytes", json()).is_number_unsigned() ||
        !file->value("xxh3_128", json()).is_string()) {
      throw DataError(fmt::format("checkpoint: {}: does not describe {}", path.string(), name));
    }
  }
  const auto state_bytes = (*files)[kState]["bytes"].get<std::uint64_t>();
  if (state_bytes > kMaxState) {
    throw DataError(fmt::format("checkpoint: {}: files.{}.bytes is {}, expected at most {}", path.string(), kState,
                                state_bytes, kMaxState));
  }
  const StateObject values(manifest, "", path);
  const std::int64_t step = values.integer("step", 0, kMostCheckpointStep);
  if (values.has("nonfinite")) static_cast<void>(values.text("nonfinite"));
  if (values.has("score")) {
    const StateObject score(manifest["score"], "score", path);
    static_cast<void>(score.number("value"));
    static_cast<void>(score.text("name"));
    if (!score.at("higher_is_better").is_boolean()) score.refuse("higher_is_better", "true or false");
  }
  // A directory that a person copied under another name stays readable; a renamed step is a mistake.
  const auto named = step_of_name(checkpoint.filename().string());
  if (named && step != *named) fail("holds another step than the directory's name says");
  return manifest;
}

void check_sizes(const json& manifest, const fs::path& checkpoint) {
  for (const char* name : kFiles) check_size(manifest, checkpoint, name);
}

json check_contents(const json& manifest, const fs::path& checkpoint) {
  check_sizes(manifest, checkpoint);  // cheap, and says more than a checksum
  for (const char* name : kFiles) {
    const auto expected = manifest["files"][name]["xxh3_128"].get<std::string>();
    const std::string actual = digest_of_file(checkpoint / name).xxh3_128;
    if (actual != expected) {
      throw DataError(fmt::format("checkpoint: {}: XXH3-128 is {}, expected {}: the file is damaged",
                                  (checkpoint / name).string(), actual, expected));
    }
  }
  const fs::path state = checkpoint / kState;
  return state_of(read_text_file(state, kMaxState), manifest["step"].get<std::int64_t>(), state);
}

bool same_tensors(const json& a, const json& b) {
  const auto same = [&](const char* name) { return a["files"][name] == b["files"][name]; };
  return same(kModel) && same(kOptimizer);
}

std::optional<CheckpointScore> score_in(const json& manifest) {
  const json score = manifest.value("score", json());
  if (score.is_null()) return std::nullopt;
  return CheckpointScore{score["value"].get<double>(), score["name"].get<std::string>(),
                         score["higher_is_better"].get<bool>()};
}

std::string nonfinite_in(const json& manifest) { return manifest.value("nonfinite", std::string()); }

std::uint64_t bytes_in(const json& manifest, const fs::path& checkpoint) {
  std::uint64_t bytes = InputFile(checkpoint / kManifest).size();
  for (const char* name : kFiles) bytes += manifest["files"][name]["bytes"].get<std::uint64_t>();
  return bytes;
}

std::string find_nonfinite(const CheckpointView& content) {
  for (const auto* tensors : {&content.model, &content.optimizer}) {
    for (const CheckpointTensorView& tensor : *tensors) {
      if (std::string found = nonfinite_element(tensor); !found.empty()) return found;
    }
  }
  return {};
}

void write_checkpoint(const CheckpointView& content, const std::string& nonfinite, const fs::path& into) {
  const auto describe = [](const FileDigest& digest) {
    return json{{"bytes", digest.bytes}, {"xxh3_128", digest.xxh3_128}};
  };
  json manifest = {{"format", kFormat}, {"step", content.step}, {"files", json::object()}};
  if (!nonfinite.empty()) manifest["nonfinite"] = nonfinite;
  if (content.score && std::isfinite(content.score->value)) {
    manifest["score"] = {{"value", content.score->value},
                         {"name", content.score->name},
                         {"higher_is_better", content.score->higher_is_better}};
  }
  const std::string state = with_finite_numbers(content.state).dump(1) + "\n";
  require_length(into / kState, state, kMaxStateWritten);
  static_cast<void>(state_of(state, content.step, into / kState));
  json& files = manifest["files"];
  files[kModel] = describe(write_tensors(into / kModel, content.model, content.step));
  files[kOptimizer] = describe(write_tensors(into / kOptimizer, content.optimizer, content.step));
  files[kState] = describe(write_text(into / kState, state));
  manifest["checksum"] = checksum_of(manifest);
  const std::string text = text_of(manifest);
  require_length(into / kManifest, text, kMaxManifest);
  write_text(into / kManifest, text);
  sync_directory(into);
}

CheckpointView CheckpointData::view() const {
  const auto views = [](const std::vector<CheckpointTensor>& tensors) {
    std::vector<CheckpointTensorView> result;
    result.reserve(tensors.size());
    for (const CheckpointTensor& tensor : tensors) {
      const std::size_t expected = static_cast<std::size_t>(tensor.shape.elements()) * size_of(tensor.dtype);
      require(tensor.data.size() == expected, "checkpoint: tensor '{}' has {} bytes, expected {} for {} {}",
              tensor.name, tensor.data.size(), expected, name_of(tensor.dtype), tensor.shape.str());
      result.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.data.data(), 1, expected, expected});
    }
    return result;
  };
  return {views(model), views(optimizer), state, step, score};
}

CheckpointData CheckpointDirectory::load(const fs::path& path, CheckpointParts parts) {
  const fs::path checkpoint = without_trailing_slash(path);
  const json manifest = read_manifest(checkpoint);
  CheckpointData data;
  data.state = check_contents(manifest, checkpoint);
  data.step = manifest["step"].get<std::int64_t>();
  data.score = score_in(manifest);
  data.nonfinite = nonfinite_in(manifest);
  data.path = checkpoint;
  data.model = read_tensors(checkpoint / kModel);
  if (parts == CheckpointParts::All) data.optimizer = read_tensors(checkpoint / kOptimizer);
  return data;
}

std::string CheckpointDirectory::verify(const fs::path& path) {
  const fs::path checkpoint = without_trailing_slash(path);
  const json manifest = read_manifest(checkpoint);
  check_contents(manifest, checkpoint);
  return nonfinite_in(manifest);
}

}  // namespace graft
