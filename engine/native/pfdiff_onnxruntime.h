/* The network of an engine on ONNX Runtime, as a callback for pfd_sample_cpu. Link pfdiff::onnxruntime.
 *
 * ONNX Runtime itself is not linked. The first pfd_onnxruntime_create loads it, 1.18 or newer: the library that the
 * environment variable PFDIFF_ONNXRUNTIME names and no other, or else libonnxruntime.so.1 as the system finds it, or
 * else the library that the build was given. It stays loaded. Its telemetry is switched off before, by
 * ORT_DISABLE_TELEMETRY=1 in the environment of the process, unless that variable is set.
 */
#ifndef PFDIFF_ONNXRUNTIME_H
#define PFDIFF_ONNXRUNTIME_H

#include "pfdiff.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pfd_onnxruntime_t pfd_onnxruntime_t;

/* Loads network.onnx of an open engine on the CPU with that many threads (0: all). Keeps nothing of the engine. */
pfd_status_t pfd_onnxruntime_create(const pfd_engine_t* engine, int32_t threads, pfd_onnxruntime_t** network);
void pfd_onnxruntime_free(pfd_onnxruntime_t* network); /* NULL is allowed */

/* Values of a condition: `count` is one value, the condition's elements (for all samples) or batch times that.
 * Without a call the condition's default holds; a condition without a default must be set. */
pfd_status_t pfd_onnxruntime_set_condition(pfd_onnxruntime_t* network, const char* name, const double* values,
                                           size_t count);

/* The pfd_network_t to pass, with the pfd_onnxruntime_t as its context. One sampling call at a time. */
int pfd_onnxruntime_network(void* network, const pfd_evaluation_t* evaluation, const float* input, float* output);

#ifdef __cplusplus
}
#endif

#endif
