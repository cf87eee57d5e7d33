# The parts that need a toolkit, each built when that is found, and pfdiff-run, which uses what was built.

# An adapter library: pfdiff_<name>, exported as pfdiff::<name>.
function(pfdiff_add_adapter name)
  add_library(pfdiff_${name} ${ARGN})
  add_library(pfdiff::${name} ALIAS pfdiff_${name})
  set_target_properties(pfdiff_${name} PROPERTIES EXPORT_NAME ${name} VERSION ${PROJECT_VERSION} SOVERSION 0
                                                  PUBLIC_HEADER engine/native/pfdiff_${name}.h)
  target_link_libraries(pfdiff_${name} PUBLIC pfdiff PRIVATE $<BUILD_INTERFACE:pfdiff_flags>)
  if(BUILD_SHARED_LIBS)
    target_compile_definitions(pfdiff_${name} PRIVATE PFD_BUILD_SHARED)
  endif()
  set(PFDIFF_TARGETS ${PFDIFF_TARGETS} pfdiff_${name} PARENT_SCOPE)
endfunction()

# ON requires the toolkit, AUTO looks for it in silence, OFF does not look.
function(pfdiff_find package wanted hint)
  if(wanted STREQUAL "OFF")
    set(${package}_FOUND FALSE PARENT_SCOPE)
    return()
  endif()
  find_package(${package} QUIET)
  if(wanted STREQUAL "ON" AND NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was asked for but not found; ${hint}")
  endif()
  set(${package}_FOUND ${${package}_FOUND} PARENT_SCOPE)
endfunction()

pfdiff_find(OnnxRuntime ${PFDIFF_ONNXRUNTIME} "set -DONNXRUNTIME_ROOT to an unpacked ONNX Runtime release")
if(OnnxRuntime_FOUND)
  pfdiff_add_adapter(onnxruntime engine/native/onnxruntime/network.cpp engine/native/feed.cpp)
  target_link_libraries(pfdiff_onnxruntime PRIVATE OnnxRuntime::OnnxRuntime)
endif()

add_executable(pfdiff-run engine/native/run/main.cpp engine/native/run/options.cpp engine/native/run/npy.cpp
                          engine/native/analytic.cpp)
target_include_directories(pfdiff-run PRIVATE engine/native)
target_link_libraries(pfdiff-run PRIVATE pfdiff pfdiff_flags)
if(TARGET pfdiff_onnxruntime)
  target_link_libraries(pfdiff-run PRIVATE pfdiff_onnxruntime)
  target_compile_definitions(pfdiff-run PRIVATE PFD_WITH_ONNXRUNTIME)
endif()
message(STATUS "pfdiff: ONNX Runtime adapter: ${OnnxRuntime_FOUND}")
