#pragma once
// The JSON at the front of a safetensors file. What it may say is so little that reading it is a few loops: there is no
// tree, nothing recurses, and whatever does not fit is refused at the byte where it stands.

#include <string>
#include <string_view>
#include <vector>

#include "train/safetensors.h"

namespace graft {

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // as they are listed
  SafetensorsMetadata metadata;
};

/// Reads the header's text: an object of tensors, each an object of dtype, shape and data_offsets, and of metadata, an
/// object of strings. Takes time and memory in proportion to its length. Checks each tensor by itself; how tensors lie
/// beside one another, and that no name is given twice, is left to the caller.
/// Throws DataError "safetensors: <label>: tensor '<name>': what came, what was expected".
[[nodiscard]] SafetensorsHeader read_safetensors_header(std::string_view text, const std::string& label);

/// The file format's name of a dtype: "F32".
[[nodiscard]] const char* safetensors_dtype_name(DType dtype);

/// What is wrong with a tensor's name, or null. Names go to terminals, logs and other programs' tables.
[[nodiscard]] const char* fault_of_tensor_name(std::string_view name);

/// A name as messages show it.
[[nodiscard]] std::string shown_tensor_name(std::string_view name);

}  // namespace graft
