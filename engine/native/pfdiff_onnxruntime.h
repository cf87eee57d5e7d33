/* The network of an engine on ONNX Runtime, as a callback for pfd_sample_cpu, and its decoder. Link
 * pfdiff::onnxruntime.
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

typedef struct pfd_onnxruntime_decoder_t pfd_onnxruntime_decoder_t;

/* Loads decoder.onnx of a latent model's engine (pfd_decoder), likewise. PFD_INPUT_ERROR for an engine without one. */
pfd_status_t pfd_onnxruntime_decoder_create(const pfd_engine_t* engine, int32_t threads,
                                            pfd_onnxruntime_decoder_t** decoder);
void pfd_onnxruntime_decoder_free(pfd_onnxruntime_decoder_t* decoder); /* NULL is allowed */

/* Images [batch][elements of pfd_decoder_view_t] of samples [batch][elements of the contract]; pfd_pixels makes bytes
 * of them. One call at a time. Images that are not finite are a PFD_BACKEND_ERROR. */
pfd_status_t pfd_onnxruntime_decode(pfd_onnxruntime_decoder_t* decoder, const float* samples, int64_t batch,
                                    float* images);

/* Loads encoders/image.onnx (pfd_image_encoder), likewise. pfd_onnxruntime_decode then makes samples of pictures,
 * floats in the contract's data_range. */
pfd_status_t pfd_onnxruntime_image_encoder_create(const pfd_engine_t* engine, int32_t threads,
                                                  pfd_onnxruntime_decoder_t** encoder);

#ifdef __cplusplus
}
#endif

#endif
