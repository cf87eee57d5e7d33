/* libpfdiff: open a pfdiff engine directory and run its programs from C or C++.
 *
 * A program is the compiled table of one few-step sampler. It keeps `buffers` states s_0 .. s_{B-1} of float32:
 *
 *     s_j = init[j] * noise
 *     for n in 0 .. nfe-1:
 *         out = network(c_in[n] * s_0, network_times[n])
 *         z   = out, or with clip: clamp(p[n] * s_0 + q[n] * out, -clip, +clip)
 *         s_j <- sum_i W[n][j][i] * s_i + w[n][j] * z + U[n][j] * out + V[n][j] * xi_n
 *         s_0 <- a * picture + b * noise                       with a mask, where it is 0
 *     the sample is s_0
 *
 * All s_j change at once. Only DDIM that clips x0 and keeps the network's eps (`ddim:eps=own`) has U, and CUDA samplers
 * refuse it. Only samplers that draw noise on the way have V. xi_n is standard normal noise, draw n + 1 of the sample's
 * seed.
 *
 * Every function that can fail returns a pfd_status_t; `pfd_last_error` then holds one line that says what was got,
 * what was expected and what to do. No exception and no C++ type crosses this header. Views point into the object they
 * describe and live as long as it does. Structures begin with `struct_size`: the caller sets it to sizeof, so that
 * fields can be added at their ends without breaking a program that was compiled before.
 * An engine and a program are immutable once made: any number of threads may sample from one at once.
 */
#ifndef PFDIFF_H
#define PFDIFF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pfd_status_t {
    PFD_OK = 0,
    PFD_INPUT_ERROR = 1,       /* an argument does not fit */
    PFD_ENGINE_FILE_ERROR = 2, /* the directory is missing, damaged, of another version or not trusted */
    PFD_BACKEND_ERROR = 3,     /* the network or the device failed */
    PFD_OUT_OF_MEMORY = 4,
    PFD_INTERNAL_ERROR = 5
} pfd_status_t;

/* The message of this thread's last failed call; "" before the first. Valid until the thread's next call. */
const char* pfd_last_error(void);

/* For a network callback: the line that the failing sample call shall report after "the network failed: ". */
void pfd_set_error(const char* message);

/* "major.minor.patch" of the library. */
const char* pfd_version(void);

/* ---- Engines: a directory with engine.json and network.onnx ---- */

typedef struct pfd_engine_t pfd_engine_t;
typedef struct pfd_program_t pfd_program_t;

/* Opens `directory` and verifies the SHA-256 of every file that engine.json lists. Files are opened beneath the
 * directory only: absolute names, "..", symbolic links and anything that is no regular file are refused. */
pfd_status_t pfd_open(const char* directory, pfd_engine_t** engine);
void pfd_close(pfd_engine_t* engine); /* NULL is allowed; frees the engine's programs too */

/* The number of programs, and the NFE of each in ascending order (0 for an index that is out of range). */
size_t pfd_program_count(const pfd_engine_t* engine);
int32_t pfd_program_nfe(const pfd_engine_t* engine, size_t index);

/* The program of that many network evaluations, owned by the engine. */
pfd_status_t pfd_program(const pfd_engine_t* engine, int32_t nfe, const pfd_program_t** program);

/* What the network takes and predicts. Shapes are per sample, without the batch. */
typedef struct pfd_contract_view_t {
    size_t struct_size;
    const char* name;
    const char* schedule;
    const char* prediction; /* eps, x0, v, flow or edm */
    const char* precision;  /* fp32, fp16 or bf16: dtype of input and output */
    const char* input;      /* names in network.onnx */
    const char* time;
    const char* output;
    const char* time_dtype; /* float32 or int64 */
    double time_scale;      /* the network is fed network_times * time_scale */
    int32_t time_rank;      /* 1: one time for each sample; 0: one scalar */
    int32_t rank;
    const int64_t* shape; /* [rank] */
    int64_t elements;     /* product of shape */
    int64_t fixed_batch;  /* 0: any batch */
    double sigma_data;
    double data_range[2];
    size_t condition_count;
    size_t batch_count;
    const int64_t* batches; /* the batch sizes the engine was built for, ascending */
} pfd_contract_view_t;

typedef struct pfd_condition_view_t {
    size_t struct_size;
    const char* name;
    const char* dtype; /* float32, float16, bfloat16, int64, int32 or bool */
    int32_t rank;
    int32_t has_default;
    const int64_t* shape; /* [rank] */
    int64_t elements;     /* per sample */
    double default_value;
    int32_t has_low;
    int32_t has_high;
    int64_t low;
    int64_t high;
} pfd_condition_view_t;

pfd_status_t pfd_contract(const pfd_engine_t* engine, pfd_contract_view_t* view);
pfd_status_t pfd_condition(const pfd_engine_t* engine, size_t index, pfd_condition_view_t* view);

/* The decoder of a latent model: image [batch][elements] = decoder(samples [batch][contract elements]). Its images lie
 * in the contract's data_range. An adapter runs it, such as pfd_onnxruntime_decode. */
typedef struct pfd_decoder_view_t {
    size_t struct_size;
    const char* name;      /* NULL: the engine has no decoder, and all else is 0 */
    const char* precision; /* fp32, fp16 or bf16: dtype of input and output */
    const char* input;     /* names in decoder.onnx */
    const char* output;
    int32_t rank; /* of an image: 3, or 4 for a video */
    int32_t reserved;
    const int64_t* image; /* [rank] channels, height, width, or channels, frames, height, width */
    int64_t elements;     /* product of image */
    int64_t fixed_batch;  /* 0: any batch */
} pfd_decoder_view_t;

pfd_status_t pfd_decoder(const pfd_engine_t* engine, pfd_decoder_view_t* view);

/* The way back, likewise: image [batch][elements] are samples, of pictures as the decoder makes them. */
pfd_status_t pfd_image_encoder(const pfd_engine_t* engine, pfd_decoder_view_t* view);

/* The path of a file that engine.json lists and pfd_open has verified, such as "network.onnx". */
pfd_status_t pfd_file_path(const pfd_engine_t* engine, const char* name, const char** path);

/* ---- Programs ---- */

/* Reads the JSON that Python's Program.to_json() writes (`length` bytes). Free with pfd_program_free. */
pfd_status_t pfd_program_from_json(const char* text, size_t length, pfd_program_t** program);
void pfd_program_free(pfd_program_t* program); /* only for programs of pfd_program_from_json; NULL is allowed */

typedef struct pfd_program_view_t {
    size_t struct_size;
    const char* solver;
    const char* schedule;
    const char* basis;
    const char* prediction;
    int32_t nfe;     /* N */
    int32_t buffers; /* B */
    int32_t has_clip;
    int32_t reserved;
    double clip;
    double sigma_data;
    const double* times;         /* [N] in the schedule's own time */
    const double* network_times; /* [N] as the network is fed, before the contract's time_scale */
    const double* c_in;          /* [N] */
    const double* init;          /* [B] */
    const double* p;             /* [N] */
    const double* q;             /* [N] */
    const double* W;             /* [N][B][B] */
    const double* w;             /* [N][B] */
    const double* table;         /* [N+1][1+K+N] rows y_0 .. y_{N-1}, result; columns noise, draws, d_0 .. d_{N-1} */
    int32_t noises;              /* K, drawn on the way */
    int32_t reserved_2;
    const int32_t* draws; /* [K] the evaluations, counted from 0, after which noise is drawn */
    const double* V;      /* [N][B] */
    const double* U;      /* [N][B]; NULL for most samplers */
} pfd_program_view_t;

pfd_status_t pfd_program_view(const pfd_program_t* program, pfd_program_view_t* view);

/* Pixels of images or of samples that are pictures, the same bits as engine.images in Python: values
 * [batch][channels][area] of which low..high becomes 0..255, halves to even, the rest clamped and NaN 0; pixels
 * [batch][area][channels]. area: height x width, or frames x height x width. */
pfd_status_t pfd_pixels(const float* values, int64_t batch, int64_t channels, int64_t area, double low, double high,
                        uint8_t* pixels);

/* ---- Sampling on the CPU ---- */

/* The noise that `seeds` mean, the same bits as pfdiff.noise: out [batch][elements], standard normal. */
pfd_status_t pfd_noise(const uint64_t* seeds, int64_t batch, int64_t elements, float* out);

/* The noise that a sampler adds after evaluation `index`, counted from 0: the same bits as in Python and on a GPU. */
pfd_status_t pfd_step_noise(const uint64_t* seeds, int64_t batch, int64_t elements, int32_t index, float* out);

typedef struct pfd_evaluation_t {
    int32_t index; /* n, of nfe */
    int32_t nfe;
    double time;         /* times[n] */
    double network_time; /* network_times[n] */
    int64_t batch;
    int64_t elements; /* per sample */
} pfd_evaluation_t;

/* One network evaluation: reads input [batch][elements], writes all of output [batch][elements]. 0 is success. */
typedef int (*pfd_network_t)(void* context, const pfd_evaluation_t* evaluation, const float* input, float* output);

/* Samples in place: `state` [batch][elements] holds the noise and then the samples. The network is called on the
 * calling thread, nfe times; the updates run on `threads` threads (0: as many as the machine has), and the result does
 * not depend on their number. An evaluation that gives NaN or infinity anywhere ends it with PFD_BACKEND_ERROR. On
 * failure the content of `state` is undefined. */
pfd_status_t pfd_sample_cpu(const pfd_program_t* program, pfd_network_t network, void* context, float* state,
                            int64_t batch, int64_t elements, int32_t threads);

/* What sampling takes beside the noise that it starts from; zero is what is not used. */
typedef struct pfd_sampling_t {
    size_t struct_size;
    int32_t threads;
    int32_t reserved;
    const uint64_t* seeds;    /* [batch] of the noise drawn on the way; a program that draws none ignores them */
    const float* steps_noise; /* [noises][batch][elements] in place of seeds, as `draws` of the program has them */
    /* With a mask the known part of a picture is kept: */
    const uint8_t* mask;         /* [batch][elements] 0 keeps the picture, anything else is drawn anew */
    const float* picture;        /* [batch][elements] */
    const double* known_factors; /* [nfe][2] after evaluation n, s_0 is f[n][0] * picture + f[n][1] * noise where the
                                    mask is 0: alpha and sigma of the schedule at times[n + 1]; 1 and 0 in the last row,
                                    of which only the first is looked at */
} pfd_sampling_t;

/* Like pfd_sample_cpu, with more. A program that draws noise needs `seeds` or `steps_noise`. */
pfd_status_t pfd_sample_cpu_with(const pfd_program_t* program, pfd_network_t network, void* context, float* state,
                                 int64_t batch, int64_t elements, const pfd_sampling_t* options);

/* One fused update, evaluation `index` of the program, for callers with a loop of their own: states [B][count] in
 * place, `output` [count] from the network; writes input [count] = c_in[index+1] * s_0 unless `input` is NULL or the
 * evaluation is the last. States that nothing reads later are left as they are; s_0 too when `input` replaces it.
 * `output` is taken as it is, NaN and infinity too. */
pfd_status_t pfd_update_cpu(const pfd_program_t* program, int32_t index, float* states, const float* output,
                            float* input, int64_t count, int32_t threads);

/* Like pfd_update_cpu, with count = batch * elements and what sampling takes. `noise` [batch][elements] is what it
 * started from; only masks need it. Of `steps_noise` the draw of this evaluation is taken. */
pfd_status_t pfd_update_cpu_with(const pfd_program_t* program, int32_t index, float* states, const float* output,
                                 float* input, const float* noise, int64_t batch, int64_t elements,
                                 const pfd_sampling_t* options);

#ifdef __cplusplus
}
#endif

#endif
