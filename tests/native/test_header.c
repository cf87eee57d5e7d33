/* The C header from C: an engine written by the test is opened, looked at and sampled; bad arguments give statuses. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pfdiff.h"

#define CHECK(condition)                                                                                   \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            fprintf(stderr, "%s:%d: %s is false; %s\n", __FILE__, __LINE__, #condition, pfd_last_error()); \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

static int network(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    ++*(int*)context;
    for (int64_t i = 0; i < evaluation->batch * evaluation->elements; ++i) output[i] = 0.5f * input[i];
    return 0;
}

static int failing(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    (void)context, (void)input, (void)output;
    if (evaluation->index == 1) pfd_set_error("the cable is loose");
    return evaluation->index == 1;
}

/* Finite, but for the last element of one evaluation. */
typedef struct overflow_t {
    int32_t index;
    float value;
} overflow_t;

static int overflowing(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output) {
    const overflow_t* overflow = context;
    const int64_t count = evaluation->batch * evaluation->elements;
    for (int64_t i = 0; i < count; ++i) output[i] = 0.5f * input[i];
    if (evaluation->index == overflow->index) output[count - 1] = overflow->value;
    return 0;
}

/* What is not finite must not come out as a sample, wherever it stands and whichever thread updates it. */
static void test_overflow(const pfd_program_t* program) {
    const int64_t counts[] = {1, 1025, 100003};
    const float values[] = {NAN, -NAN, INFINITY, -INFINITY};
    float* state = calloc(100003, sizeof *state);
    CHECK(state != NULL);
    for (int c = 0; c < 3; ++c)
        for (int32_t index = 0; index < 3; ++index)
            for (int v = 0; v < 4; ++v) {
                overflow_t overflow = {index, values[v]};
                char words[64];
                snprintf(words, sizeof words, "the network's output is not finite at evaluation %d of 3, time ",
                         (int)index + 1);
                memset(state, 0, (size_t)counts[c] * sizeof *state);
                CHECK(pfd_sample_cpu(program, overflowing, &overflow, state, 1, counts[c], 3) == PFD_BACKEND_ERROR);
                CHECK(strncmp(pfd_last_error(), words, strlen(words)) == 0);
                overflow.value = 3e38f; /* large, and finite */
                memset(state, 0, (size_t)counts[c] * sizeof *state);
                CHECK(index != 2 || pfd_sample_cpu(program, overflowing, &overflow, state, 1, counts[c], 3) == PFD_OK);
            }
    free(state);
}

static void test_bad_arguments(const pfd_engine_t* engine, const pfd_program_t* program) {
    pfd_engine_t* none = (pfd_engine_t*)&none;
    const pfd_program_t* missing = NULL;
    pfd_program_t* made = NULL;
    pfd_program_view_t view = {0};
    float state[16] = {0};
    int calls = 0;
    CHECK(pfd_open("no such folder", &none) == PFD_ENGINE_FILE_ERROR && none == NULL);
    CHECK(strstr(pfd_last_error(), "'no such folder'") != NULL);
    CHECK(pfd_open(NULL, &none) == PFD_INPUT_ERROR && pfd_open(".", NULL) == PFD_INPUT_ERROR);
    CHECK(pfd_program(engine, 7, &missing) == PFD_INPUT_ERROR && strstr(pfd_last_error(), "it has 3") != NULL);
    CHECK(pfd_program_nfe(engine, 1) == 0 && pfd_program_count(NULL) == 0);
    CHECK(pfd_program_view(program, &view) == PFD_INPUT_ERROR && strstr(pfd_last_error(), "struct_size") != NULL);
    CHECK(pfd_program_from_json("{}", 2, &made) == PFD_ENGINE_FILE_ERROR && made == NULL);
    CHECK(pfd_sample_cpu(program, network, &calls, state, 0, 16, 1) == PFD_INPUT_ERROR);
    CHECK(pfd_sample_cpu(program, network, &calls, state, INT64_MAX, INT64_MAX, 1) == PFD_INPUT_ERROR);
    CHECK(pfd_sample_cpu(program, NULL, NULL, state, 1, 16, 1) == PFD_INPUT_ERROR);
    CHECK(pfd_sample_cpu(program, network, &calls, state, 1, 16, -1) == PFD_INPUT_ERROR);
    CHECK(pfd_sample_cpu(program, failing, NULL, state, 1, 16, 1) == PFD_BACKEND_ERROR);
    CHECK(strcmp(pfd_last_error(), "the network failed at evaluation 2 of 3: the cable is loose") == 0);
    CHECK(pfd_update_cpu(program, 3, state, state, NULL, 8, 1) == PFD_INPUT_ERROR);
    CHECK(pfd_noise(NULL, 1, 1, state) == PFD_INPUT_ERROR && pfd_noise(NULL, 0, 5, NULL) == PFD_OK);
    CHECK(calls == 0);
    pfd_close(NULL), pfd_program_free(NULL);
}

int main(int count, char** words) {
    pfd_engine_t* engine = NULL;
    const pfd_program_t* program = NULL;
    const char* path = NULL;
    CHECK(count == 2);
    CHECK(pfd_open(words[1], &engine) == PFD_OK);
    CHECK(pfd_program_count(engine) == 1 && pfd_program_nfe(engine, 0) == 3);
    CHECK(pfd_program(engine, 3, &program) == PFD_OK);

    pfd_contract_view_t contract = {.struct_size = sizeof contract};
    CHECK(pfd_contract(engine, &contract) == PFD_OK);
    CHECK(contract.elements == 16 && contract.rank == 3 && strcmp(contract.prediction, "eps") == 0);
    CHECK(contract.batch_count == 2 && contract.batches[1] == 8 && contract.fixed_batch == 0);
    pfd_condition_view_t condition = {.struct_size = sizeof condition};
    CHECK(pfd_condition(engine, 0, &condition) == PFD_OK && condition.default_value == 10 && condition.high == 10);
    CHECK(pfd_condition(engine, 1, &condition) == PFD_INPUT_ERROR);
    CHECK(pfd_file_path(engine, "network.onnx", &path) == PFD_OK && strstr(path, "/network.onnx") != NULL);
    CHECK(pfd_file_path(engine, "../secret", &path) == PFD_INPUT_ERROR);

    /* A structure of an older, shorter header gets its own fields and nothing beyond. */
    pfd_program_view_t view;
    memset(&view, 0xAB, sizeof view);
    view.struct_size = offsetof(pfd_program_view_t, times);
    CHECK(pfd_program_view(program, &view) == PFD_OK && view.nfe == 3 && view.buffers == 2);
    CHECK(memcmp(&view.times, "\xAB\xAB\xAB\xAB", 4) == 0);

    const uint64_t seeds[2] = {3, UINT64_MAX};
    float both[32], second[16];
    int calls = 0;
    CHECK(pfd_noise(seeds, 2, 16, both) == PFD_OK && pfd_noise(seeds + 1, 1, 16, second) == PFD_OK);
    CHECK(memcmp(both + 16, second, sizeof second) == 0);
    CHECK(pfd_sample_cpu(program, network, &calls, both, 2, 16, 2) == PFD_OK && calls == 3);
    CHECK(pfd_sample_cpu(program, network, &calls, second, 1, 16, 1) == PFD_OK);
    CHECK(memcmp(both + 16, second, sizeof second) == 0); /* a sample depends on its seed only */
    for (int i = 0; i < 32; ++i) CHECK(isfinite(both[i]));
    test_bad_arguments(engine, program);
    test_overflow(program);
    pfd_close(engine);
    CHECK(strlen(pfd_version()) >= 5);
    return 0;
}
