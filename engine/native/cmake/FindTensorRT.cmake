# TensorRT 10 or 11, or TensorRT-RTX: the target TensorRT::TensorRT, and TensorRT_RTX when it is the latter.
#
# TENSORRT_ROOT (variable or environment) names an unpacked release. With both on the machine, the plain one is taken
# unless -DTensorRT_LIBRARY names the other.
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY NAMES nvinfer tensorrt_rtx HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT}
             PATH_SUFFIXES lib lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR)
set(TensorRT_RTX FALSE)
if(TensorRT_LIBRARY MATCHES "rtx")
  set(TensorRT_RTX TRUE)
endif()
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
  set_target_properties(TensorRT::TensorRT PROPERTIES IMPORTED_LOCATION "${TensorRT_LIBRARY}"
                                                      INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR}")
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)
