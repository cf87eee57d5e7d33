// The files in which an ONNX model keeps weights, read from its protobuf without loading it.
#pragma once

#include <set>
#include <string>

#include "directory.h"

namespace pfdiff {

// Every location that a tensor of the file names, in graphs, subgraphs, attributes, functions and training graphs, as
// it is written. Throws Error (PFD_ENGINE_FILE_ERROR) when the file is no ONNX model that can be read to its end.
std::set<std::string> external_weights(const Directory& directory, const std::string& name);

}  // namespace pfdiff
