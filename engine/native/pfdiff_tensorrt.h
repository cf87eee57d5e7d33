/* The network of an engine as a TensorRT plan, a callback for pfd_cuda_sampler_create. Link pfdiff::tensorrt.
 * One source for TensorRT 10 and 11 and for TensorRT-RTX.
 */
#ifndef PFDIFF_TENSORRT_H
#define PFDIFF_TENSORRT_H

#include "pfdiff_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pfd_tensorrt_t pfd_tensorrt_t;

/* Deserialises the plan file `plan` for the current device and prepares the times of `program` for `batch` samples. A
 * plan is executable code of one TensorRT version and one GPU: it is loaded only when it is named here, so name only
 * plans that you built. Keeps nothing of engine and program. */
pfd_status_t pfd_tensorrt_create(const pfd_engine_t* engine, const pfd_program_t* program, const char* plan,
                                 int64_t batch, pfd_tensorrt_t** network);
void pfd_tensorrt_free(pfd_tensorrt_t* network); /* NULL is allowed */

/* Values of a condition: one value, the condition's elements (for all samples) or batch times that. They are copied to
 * the device at once and hold for samplers that exist already, captured ones too. Call it while none of them runs. */
pfd_status_t pfd_tensorrt_set_condition(pfd_tensorrt_t* network, const char* name, const double* values, size_t count);

/* The dtype to create the sampler with. */
pfd_dtype_t pfd_tensorrt_dtype(const pfd_tensorrt_t* network);

/* The pfd_cuda_network_t to pass, with the pfd_tensorrt_t as its context. */
int pfd_tensorrt_network(void* network, const pfd_evaluation_t* evaluation, const void* input, void* output,
                         pfd_stream_t stream);

#ifdef __cplusplus
}
#endif

#endif
