/* A policy in a control loop: a seed in, the actions of the next ticks out. Link pfdiff::pfdiff.
 *
 * Everything is allocated by pfd_control_create. A tick takes no lock and allocates nothing, beside what the network's
 * callback does itself; it runs on the calling thread alone. An observation encoder, where the engine has one, is the
 * caller's to run: its output is the network's condition.
 */
#ifndef PFDIFF_CONTROL_H
#define PFDIFF_CONTROL_H

#include "pfdiff.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pfd_control_t pfd_control_t;

typedef struct pfd_control_view_t {
    size_t struct_size;
    int32_t nfe;
    int32_t has_encoder; /* 1: the condition is what encoders/observation.onnx makes */
    int64_t horizon;     /* actions that are sampled */
    int64_t first;       /* of these are carried out: first .. first + count - 1 */
    int64_t count;
    int64_t actions; /* numbers of an action */
} pfd_control_view_t;

/* Prepares the program of `nfe` evaluations of an engine that is a policy, batch 1. Keeps the engine's program: close
 * the engine afterwards. */
pfd_status_t pfd_control_create(const pfd_engine_t* engine, int32_t nfe, pfd_control_t** control);
void pfd_control_free(pfd_control_t* control); /* NULL is allowed */

pfd_status_t pfd_control_view(const pfd_control_t* control, pfd_control_view_t* view);

/* Samples with the noise of `seed` and writes the chunk that is carried out, in the actions' own units: actions
 * [count][actions]. One call at a time. */
pfd_status_t pfd_control_sample(pfd_control_t* control, uint64_t seed, pfd_network_t network, void* context,
                                float* actions);

#ifdef __cplusplus
}
#endif

#endif
