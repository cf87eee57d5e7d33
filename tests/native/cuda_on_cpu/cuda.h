// CUDA's driver in the place of a device, for engine/native/cuda/cubins.cpp. A "cubin" is a line of text: the name of a
// variant of kernels/variants.py and its arguments' names. A launch runs what kernels/native computes for the masks in
// that name, so the wrong kernel, and the wrong argument, give the wrong numbers.
#pragma once

#include "cuda_runtime_api.h"

enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
struct CUmod_st;
using CUmodule = CUmod_st*;
using CUfunction = CUmod_st*;
using CUstream = cudaStream_t;

CUresult cuGetErrorString(CUresult error, const char** words);
CUresult cuModuleLoadData(CUmodule* module, const void* image);
CUresult cuModuleUnload(CUmodule module);
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name);
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters,
                        void** extra);

// One of these by its name; null for another.
void* driver_function(const char* name);
