/* edgekit native: DCCRN speech denoising, frame by frame, in C99.
 *
 *     ek_model* model;  ek_stream* stream;
 *     ek_model_open("denoiser.ekd", NULL, &model);          packs the weights for this CPU
 *     ek_stream_create(model, &stream);
 *     ek_stream_process(stream, in, out, n);                any n; out is in, ek_stream_latency() samples ago
 *
 * Every function that can fail returns an ek_status; ek_status_text() says what it means and ek_last_message(), on the same thread,
 * what was wrong this time. A call that fails leaves the object as it was.
 * A model is read-only once open: any number of streams on any threads may share it. A stream belongs to one thread at a time.
 * Audio is 32-bit float, mono, at the model's own rate (ek_info.sample_rate_hz), nominally within -1 .. 1.
 * Once a stream exists, nothing but ek_stream_close touches the heap. */
#ifndef EDGEKIT_EDGEKIT_H
#define EDGEKIT_EDGEKIT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EK_API __attribute__((visibility("default")))
#else
#define EK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EK_MAX_DEPTH 8
#define EK_MAX_RECURRENT 4
#define EK_MAX_THREADS 64

typedef enum ek_status {
  EK_OK = 0,
  EK_BAD_ARGUMENT = 1,  /* a null pointer, a size or an option that cannot be */
  EK_BAD_FILE = 2,      /* the file cannot be opened or read */
  EK_BAD_MODEL = 3,     /* the bytes are not a weight file of this version, or a damaged one */
  EK_UNSUPPORTED = 4,   /* this CPU, this build or these weights cannot do what the options ask */
  EK_NO_MEMORY = 5,
  EK_BAD_AUDIO = 6,     /* a sample is NaN, infinite or beyond +-65536; the stream is as before the call */
  EK_BAD_STATE = 7,     /* a saved state that is damaged or belongs to another model, row of kernels or precision */
  EK_CUDA_FAILED = 16   /* of cuda.h only: a call to CUDA failed; ek_last_message() has CUDA's own words */
} ek_status;

EK_API const char* ek_version(void);
/* One sentence for a status; never null. */
EK_API const char* ek_status_text(ek_status status);
/* What the last failing call on this thread found wrong; "" if none has failed. Valid until the next failing call on this thread. */
EK_API const char* ek_last_message(void);

/* The best instruction set of this CPU that this build has kernels for, or what EDGEKIT_ISA asks for.
 * Null if EDGEKIT_ISA names one that is unknown or unsupported (ek_last_message says which). */
EK_API const char* ek_best_isa(void);

typedef enum ek_precision {
  EK_PRECISION_AUTO = 0,  /* int8 for a quantized file, else fp32 */
  EK_PRECISION_FP32 = 1,
  EK_PRECISION_BF16 = 2,  /* bf16 weights and activations, fp32 sums; where a CPU lacks them, fp32 on bf16 weights */
  EK_PRECISION_INT8 = 3   /* only for a quantized file, and the only one for it */
} ek_precision;

typedef enum ek_algorithm {
  EK_ALGORITHM_AUTO = 0,
  EK_ALGORITHM_FOUR_MULT = 1,
  EK_ALGORITHM_GAUSS = 2, /* three real products instead of four; fp32 only */
  EK_ALGORITHM_FAST = 3   /* two frames for the products of one and a half, besides Gauss in fp32; where the kernels and an int8 file's weights allow it */
} ek_algorithm;

/* Start from EK_OPTIONS_INIT. `size` lets a newer library accept an older caller's struct. */
typedef struct ek_options {
  size_t size;          /* sizeof(ek_options) */
  const char* isa;      /* "scalar", "avx2", "avx512", "neon", "neon_dotprod"; null: ek_best_isa() */
  int32_t precision;    /* ek_precision */
  int32_t algorithm;    /* ek_algorithm */
  int32_t threads;      /* of each stream, 1 .. EK_MAX_THREADS; 1: the calling thread alone, no other is made */
} ek_options;
#define EK_OPTIONS_INIT {sizeof(ek_options), NULL, EK_PRECISION_AUTO, EK_ALGORITHM_AUTO, 1}

/* What a weight file holds, and for an open model how it runs. Set `size` to sizeof(ek_info) before asking. */
typedef struct ek_info {
  size_t size;
  uint32_t format_version;
  uint32_t weight_format;       /* 0 f32, 1 f16, 3 int8 */
  uint32_t sample_rate_hz;
  uint32_t win_length, hop_length, n_fft;
  uint32_t bins;                /* n_fft / 2: the network drops DC */
  uint32_t depth;               /* encoder layers */
  uint32_t mask;                /* 0 E, 1 C, 2 R */
  uint32_t look_ahead;          /* 1: every decoder layer sees one frame ahead, as in the reference; 0: strictly causal */
  uint32_t rnn_kind;            /* 0 LSTM, 1 GRU */
  uint32_t rnn_layers;
  uint32_t encoder_channels[EK_MAX_DEPTH + 1];  /* complex channels; [0] is 1 */
  uint32_t decoder_channels[EK_MAX_DEPTH + 1];  /* [0] of the projection, [depth] is 1 */
  uint32_t hidden[EK_MAX_RECURRENT];            /* of each real net */
  uint32_t crc32;               /* of the file */
  uint64_t file_bytes;
  uint64_t parameters;          /* of the network as the file holds it: batch norm folded to one gain and one bias a row */
  uint64_t macs_per_frame;      /* real multiplications of a frame, four per complex product */
  uint32_t latency_samples;     /* win_length, and depth hops more with look-ahead */
  /* zeros and empty for a file that is only inspected: */
  int32_t precision;            /* ek_precision, never AUTO */
  int32_t algorithm;            /* ek_algorithm, never AUTO */
  int32_t threads;
  char isa[16];                 /* as asked for or found */
  char row[24];                 /* the kernels that run, such as "avx512_f32" */
  uint64_t packed_bytes;        /* weights in memory, shared by all streams */
  uint64_t stream_bytes;        /* frames and states of one stream */
  uint64_t state_bytes;         /* of a saved state */
} ek_info;

/* ---- models ---- */

typedef struct ek_model ek_model;

/* Reads, checks and packs a weight file; afterwards the file is closed again. `options` may be null. */
EK_API ek_status ek_model_open(const char* path, const ek_options* options, ek_model** model);
/* The same from memory, which is not needed after the call. */
EK_API ek_status ek_model_open_memory(const void* bytes, size_t n, const ek_options* options, ek_model** model);
EK_API ek_status ek_model_info(const ek_model* model, ek_info* info);
/* Close its streams first. Null is allowed. */
EK_API void ek_model_close(ek_model* model);

/* What a weight file says of itself, checked as ek_model_open would, without packing it. */
EK_API ek_status ek_file_info(const char* path, ek_info* info);

/* ---- streams ---- */

typedef struct ek_stream ek_stream;

EK_API ek_status ek_stream_create(const ek_model* model, ek_stream** stream);
EK_API void ek_stream_close(ek_stream* stream);

/* n samples in, n samples out; any n, also 0; `out` may be `in`. The output lags by ek_stream_latency(): the first samples are zeros. */
EK_API ek_status ek_stream_process(ek_stream* stream, const float* in, float* out, size_t n);
EK_API size_t ek_stream_latency(const ek_stream* stream);
/* Ends the clip: writes the ek_stream_latency() samples that are still on their way (capacity: at least as many), and resets.
 * process(clip) and flush together are `latency` zeros and then exactly what ek_denoise gives. */
EK_API ek_status ek_stream_flush(ek_stream* stream, float* out, size_t capacity);
EK_API ek_status ek_stream_reset(ek_stream* stream);

/* A state is a flat blob that fits streams of the same weights, row of kernels, precision and algorithm, whatever their threads. */
EK_API size_t ek_stream_state_bytes(const ek_stream* stream);
EK_API ek_status ek_stream_save(const ek_stream* stream, void* blob, size_t capacity);
EK_API ek_status ek_stream_restore(ek_stream* stream, const void* blob, size_t n);

/* A whole clip, as the reference network does it offline: padded by win_length - hop_length at both ends, trimmed, clamped to +-1.
 * A clip that is not a whole number of hops is taken as followed by zeros up to one. Uses `stream` as its work space: resets it
 * before and after. `out` may be `in`. */
EK_API ek_status ek_denoise(ek_stream* stream, const float* in, float* out, size_t n);

/* One frame of the network alone: spectrum [2][bins] (real, imaginary; DC left out) -> mask [2][bins], before tanh.
 * With look-ahead the mask is that of the frame `depth` calls ago; the first `depth` masks belong to no frame.
 * For verification and benchmarks; do not mix with process on one stream without a reset in between. */
EK_API ek_status ek_step(ek_stream* stream, const float* spectrum, float* mask);

#ifdef __cplusplus
}
#endif
#endif
