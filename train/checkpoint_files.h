#pragma once
// The files of one checkpoint. CheckpointDirectory decides where they lie and when they count.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/checkpoint.h"

namespace graft {

/// The manifest of a checkpoint, whose own checksum, form and values are right. Throws DataError naming the file.
[[nodiscard]] nlohmann::json read_manifest(const std::filesystem::path& checkpoint);
/// Throws DataError naming the first file whose size is not the manifest's.
void check_sizes(const nlohmann::json& manifest, const std::filesystem::path& checkpoint);
/// The same for sizes and checksums: every byte is read. Returns the state, which check_state() has accepted.
nlohmann::json check_contents(const nlohmann::json& manifest, const std::filesystem::path& checkpoint);

/// Whether two manifests describe the same weights and moments.
[[nodiscard]] bool same_tensors(const nlohmann::json& a, const nlohmann::json& b);

/// What read_manifest() found, or nothing.
[[nodiscard]] std::optional<CheckpointScore> score_in(const nlohmann::json& manifest);
[[nodiscard]] std::string nonfinite_in(const nlohmann::json& manifest);
/// Bytes of all files, the manifest's own included.
[[nodiscard]] std::uint64_t bytes_in(const nlohmann::json& manifest, const std::filesystem::path& checkpoint);

/// The first number of the tensors that is not finite: "blocks.0.weight[17] is nan"; empty if all are.
[[nodiscard]] std::string find_nonfinite(const CheckpointView& content);

/// Writes all files of a checkpoint into an existing directory, and waits until files and directory are on the disk.
/// Throws what reading it would throw, if its state or manifest could not be read.
void write_checkpoint(const CheckpointView& content, const std::string& nonfinite, const std::filesystem::path& into);

/// The n of "step_<n>", written without leading zeros; none for any other name.
[[nodiscard]] std::optional<std::int64_t> step_of_name(std::string_view name);
[[nodiscard]] std::string name_of_step(std::int64_t step);
/// The same name for a checkpoint however its path is written ("ckpt/step_5/").
[[nodiscard]] std::filesystem::path without_trailing_slash(const std::filesystem::path& path);

}  // namespace graft
