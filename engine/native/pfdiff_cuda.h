/* Sampling on a CUDA device: the whole loop {network; fused update} x N captured once as a CUDA graph and replayed.
 * Link pfdiff::cuda. A `stream` is a cudaStream_t; device pointers are plain pointers. One thread at a time per object.
 */
#ifndef PFDIFF_CUDA_H
#define PFDIFF_CUDA_H

#include "pfdiff.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* pfd_stream_t; /* cudaStream_t, without CUDA's headers */

typedef enum pfd_dtype_t { PFD_FLOAT32 = 0, PFD_FLOAT16 = 1, PFD_BFLOAT16 = 2 } pfd_dtype_t;

/* Enqueues one network evaluation on `stream`: reads input [batch][elements], writes output [batch][elements], both in
 * device memory of the sampler's dtype and at the same addresses for every evaluation. 0 is success. It is called for
 * the warm-up and for the capture, not at replay; in a capture it must neither synchronise nor allocate. */
typedef int (*pfd_cuda_network_t)(void* context, const pfd_evaluation_t* evaluation, const void* input, void* output,
                                  pfd_stream_t stream);

/* Triton's kernels, compiled ahead of time by `pfdiff kernels`: an alternative to the built-in CUDA ones. */
typedef struct pfd_cuda_kernels_t pfd_cuda_kernels_t;

/* Loads from `directory` what fits the current device. The object must outlive the samplers that use it. */
pfd_status_t pfd_cuda_kernels_load(const char* directory, pfd_cuda_kernels_t** kernels);
void pfd_cuda_kernels_free(pfd_cuda_kernels_t* kernels); /* NULL is allowed */

typedef struct pfd_cuda_options_t {
    size_t struct_size;
    int64_t batch;
    int64_t elements;                  /* per sample */
    pfd_dtype_t dtype;                 /* of the network's input and output; the states are float32 */
    int32_t eager;                     /* 1: never capture; run the same loop launch by launch */
    const pfd_cuda_kernels_t* kernels; /* NULL: the built-in CUDA kernels */
    const double* known_factors;       /* [nfe][2] as in pfd_sampling_t: samples with a mask; NULL: without */
} pfd_cuda_options_t;

typedef struct pfd_cuda_sampler_t pfd_cuda_sampler_t;

/* Allocates on the current device, runs the loop twice eagerly (networks choose kernels and allocate in their first
 * calls) and captures it. The program, the network and its context must outlive the sampler. */
pfd_status_t pfd_cuda_sampler_create(const pfd_program_t* program, pfd_cuda_network_t network, void* context,
                                     const pfd_cuda_options_t* options, pfd_cuda_sampler_t** sampler);
void pfd_cuda_sampler_free(pfd_cuda_sampler_t* sampler); /* waits for the device; NULL is allowed */

/* "" when the loop was captured, else why it runs launch by launch. */
const char* pfd_cuda_sampler_not_captured(const pfd_cuda_sampler_t* sampler);

/* Device memory of the sampler: noise and samples float32 [batch][elements]. A run overwrites both. */
float* pfd_cuda_sampler_noise(pfd_cuda_sampler_t* sampler);
const float* pfd_cuda_sampler_samples(const pfd_cuda_sampler_t* sampler);

/* Of a sampler with a mask, device memory that its runs read: the known picture float32 [batch][elements], and the mask
 * [batch][elements], 0 where the picture is kept. At first the mask is 0 throughout. NULL without a mask. */
float* pfd_cuda_sampler_picture(pfd_cuda_sampler_t* sampler);
uint8_t* pfd_cuda_sampler_mask(pfd_cuda_sampler_t* sampler);

/* Enqueues one batch on `stream` and returns: from seeds [batch] in host memory, or with NULL from what stands in the
 * noise buffer. The seeds are copied before it returns. It waits for nothing but the copy of the seeds of the call
 * before the last, so two batches can be queued ahead of the device. On a stream that is being captured only NULL is
 * allowed. */
pfd_status_t pfd_cuda_sampler_run(pfd_cuda_sampler_t* sampler, const uint64_t* seeds, pfd_stream_t stream);

/* Enqueues a copy of seeds [batch], of which later runs from the noise buffer draw the noise on the way. A program that
 * draws noise refuses to run from the noise buffer before seeds were given, here or to pfd_cuda_sampler_run. */
pfd_status_t pfd_cuda_sampler_seeds(pfd_cuda_sampler_t* sampler, const uint64_t* seeds, pfd_stream_t stream);

/* Waits for `stream` and copies the samples to host memory [batch][elements]. They are not looked at: a network that
 * overflows in its dtype gives NaN or infinity here, where pfd_sample_cpu says so. */
pfd_status_t pfd_cuda_sampler_copy(pfd_cuda_sampler_t* sampler, float* samples, pfd_stream_t stream);

/* Noise and pictures on their own, all in device memory. pixels uint8 [batch][area][channels] from x float32
 * [batch][channels][area]; low and high are the contract's data_range. */
pfd_status_t pfd_cuda_noise(float* noise, const uint64_t* seeds, int64_t batch, int64_t elements, pfd_stream_t stream);
pfd_status_t pfd_cuda_images(uint8_t* pixels, const float* x, double low, double high, int64_t batch, int32_t channels,
                             int32_t area, pfd_stream_t stream);

#ifdef __cplusplus
}
#endif

#endif
