# ONNX Runtime's C header: the target OnnxRuntime::Headers. Nothing is linked: the adapter loads the library at run time.
#
# ONNXRUNTIME_ROOT (variable or environment) names an unpacked release or a prefix. OnnxRuntime_LIBRARY is the library
# that the adapter tries after the system's; it is found below the same root or given on its own, as the Python wheel
# brings it: -DOnnxRuntime_LIBRARY=.../onnxruntime/capi/libonnxruntime.so.1.xx.y
set(OnnxRuntime_OLDEST_API 18) # the adapter's needed_api
find_path(OnnxRuntime_INCLUDE_DIR onnxruntime_c_api.h HINTS ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT}
          PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
find_library(OnnxRuntime_LIBRARY onnxruntime HINTS ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT} PATH_SUFFIXES lib lib64)
set(OnnxRuntime_API_VERSION 0)
set(OnnxRuntime_NEW_ENOUGH FALSE)
if(OnnxRuntime_INCLUDE_DIR)
  file(STRINGS ${OnnxRuntime_INCLUDE_DIR}/onnxruntime_c_api.h line REGEX "^#define ORT_API_VERSION +[0-9]+")
  if(line MATCHES "([0-9]+)[^0-9]*$")
    set(OnnxRuntime_API_VERSION ${CMAKE_MATCH_1})
  endif()
  if(OnnxRuntime_API_VERSION GREATER_EQUAL OnnxRuntime_OLDEST_API)
    set(OnnxRuntime_NEW_ENOUGH TRUE)
  else()
    message(STATUS "pfdiff: ONNX Runtime's headers in ${OnnxRuntime_INCLUDE_DIR} are of version "
                   "1.${OnnxRuntime_API_VERSION}, expected 1.${OnnxRuntime_OLDEST_API} or newer; they are not used")
  endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime REQUIRED_VARS OnnxRuntime_INCLUDE_DIR OnnxRuntime_NEW_ENOUGH)
if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::Headers)
  add_library(OnnxRuntime::Headers INTERFACE IMPORTED)
  set_target_properties(OnnxRuntime::Headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${OnnxRuntime_INCLUDE_DIR}")
endif()
mark_as_advanced(OnnxRuntime_INCLUDE_DIR OnnxRuntime_LIBRARY)
