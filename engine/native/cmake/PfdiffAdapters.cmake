# The parts that need a toolkit, each built when that is found, and pfdiff-run, which uses what was built.

# An adapter library: pfdiff_<name>, exported as pfdiff::<name>.
function(pfdiff_add_adapter name)
  add_library(pfdiff_${name} ${ARGN})
  add_library(pfdiff::${name} ALIAS pfdiff_${name})
  set_target_properties(pfdiff_${name} PROPERTIES EXPORT_NAME ${name} VERSION ${PROJECT_VERSION} SOVERSION 0
                                                  PUBLIC_HEADER engine/native/pfdiff_${name}.h)
  target_link_libraries(pfdiff_${name} PUBLIC pfdiff PRIVATE $<BUILD_INTERFACE:pfdiff_flags>)
  set(PFDIFF_TARGETS ${PFDIFF_TARGETS} pfdiff_${name} PARENT_SCOPE)
endfunction()

# ON requires the toolkit, AUTO looks for it in silence, OFF does not look. A folder named by -D<root> is required too.
function(pfdiff_find package wanted root hint)
  if(wanted STREQUAL "OFF")
    set(${package}_FOUND FALSE PARENT_SCOPE)
    return()
  endif()
  find_package(${package} QUIET)
  if(NOT ${package}_FOUND AND NOT "${${root}}" STREQUAL "")
    message(FATAL_ERROR "${package} was not found in ${root}=${${root}}; ${hint}")
  elseif(wanted STREQUAL "ON" AND NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was asked for but not found; ${hint}")
  endif()
  set(${package}_FOUND ${${package}_FOUND} PARENT_SCOPE)
endfunction()

pfdiff_find(OnnxRuntime ${PFDIFF_ONNXRUNTIME} ONNXRUNTIME_ROOT
            "set -DONNXRUNTIME_ROOT to an unpacked ONNX Runtime 1.18 or newer")
if(OnnxRuntime_FOUND)
  pfdiff_add_adapter(onnxruntime engine/native/onnxruntime/network.cpp engine/native/onnxruntime/decoder.cpp
                     engine/native/onnxruntime/session.cpp engine/native/onnxruntime/load.cpp)
  target_link_libraries(pfdiff_onnxruntime PRIVATE $<BUILD_INTERFACE:OnnxRuntime::Headers> ${CMAKE_DL_LIBS})
  if(OnnxRuntime_LIBRARY)
    set_property(SOURCE engine/native/onnxruntime/load.cpp APPEND PROPERTY
                 COMPILE_DEFINITIONS PFD_ONNXRUNTIME_LIBRARY="${OnnxRuntime_LIBRARY}")
  endif()
endif()

# CUDA: the kernels and the graph sampler. The runtime is linked in, the driver is looked for when it is needed, so what
# is built here starts on machines without one.
if(NOT PFDIFF_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES "")
    foreach(capability ${PFDIFF_CUDA_ARCHITECTURES})
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${capability}-real)
    endforeach()
    list(GET PFDIFF_CUDA_ARCHITECTURES -1 newest)
    list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual) # PTX of the last, for what comes after it
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
  endif()
  if(PFDIFF_CUDA STREQUAL "ON" AND NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "CUDA was asked for but nvcc and its toolkit were not found; set -DCMAKE_CUDA_COMPILER=...")
  endif()
endif()
if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
  set(CMAKE_CUDA_STANDARD 17) # CMake before 3.25.2 does not know that nvcc speaks C++20
  pfdiff_add_adapter(cuda engine/native/cuda/sampler.cpp engine/native/cuda/cubins.cpp kernels/native/step.cu
                     kernels/native/step_extras.cu kernels/native/noise.cu kernels/native/images.cu)
  set(reported -warn-spills)
  if(PFDIFF_TESTS) # a test reads the registers of every kernel in the build log, which are thousands of lines
    set(reported -v,-warn-spills)
  endif()
  target_compile_options(pfdiff_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xptxas ${reported} -Xcompiler -Wall,-Wextra -t2>)
  target_link_libraries(pfdiff_cuda PRIVATE CUDA::cudart_static)
  set(PFDIFF_WITH_CUDA TRUE)
else()
  set(PFDIFF_WITH_CUDA FALSE)
endif()

pfdiff_find(TensorRT ${PFDIFF_TENSORRT} TENSORRT_ROOT
            "set -DTENSORRT_ROOT to an unpacked TensorRT or TensorRT-RTX release")
if(TensorRT_FOUND AND TARGET pfdiff_cuda)
  pfdiff_add_adapter(tensorrt engine/native/tensorrt/network.cpp)
  target_link_libraries(pfdiff_tensorrt PUBLIC pfdiff_cuda PRIVATE TensorRT::TensorRT CUDA::cudart_static)
  target_compile_definitions(pfdiff_tensorrt PRIVATE $<$<BOOL:${TensorRT_RTX}>:PFD_TENSORRT_RTX>)
endif()

add_executable(pfdiff-run engine/native/run/main.cpp engine/native/run/options.cpp engine/native/run/npy.cpp
                          engine/native/run/pixels.cpp engine/native/run/start.cpp
                          engine/native/analytic.cpp)
target_include_directories(pfdiff-run PRIVATE engine/native)
target_link_libraries(pfdiff-run PRIVATE pfdiff pfdiff_flags)
if(TARGET pfdiff_onnxruntime)
  target_link_libraries(pfdiff-run PRIVATE pfdiff_onnxruntime)
  target_compile_definitions(pfdiff-run PRIVATE PFD_WITH_ONNXRUNTIME)
endif()
if(TARGET pfdiff_tensorrt)
  target_sources(pfdiff-run PRIVATE engine/native/run/tensorrt.cpp)
  target_link_libraries(pfdiff-run PRIVATE pfdiff_tensorrt)
  target_compile_definitions(pfdiff-run PRIVATE PFD_WITH_TENSORRT)
endif()
message(STATUS "pfdiff: TensorRT: ${TensorRT_FOUND}")
message(STATUS "pfdiff: CUDA: ${PFDIFF_WITH_CUDA}, ONNX Runtime: ${OnnxRuntime_FOUND}")
