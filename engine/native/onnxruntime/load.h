// ONNX Runtime, loaded when it is first needed.
#pragma once

#include <onnxruntime_c_api.h>

namespace pfdiff {

// The interface of the loaded library; see pfdiff_onnxruntime.h for which one. Throws Error (PFD_BACKEND_ERROR).
const OrtApi& onnxruntime();

}  // namespace pfdiff
