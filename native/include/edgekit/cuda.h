/* edgekit native on an NVIDIA GPU: the DCCRN network for many streams at once, one frame of each per step, as one CUDA graph; and the
 * fused complex convolution on whole tensors. In libedgekit.so where it was built with EK_CUDA=ON.
 *
 *     ek_cuda_options options = EK_CUDA_OPTIONS_INIT;  options.streams = 8;
 *     ek_cuda_engine* engine;
 *     ek_cuda_open("denoiser.ekd", &options, &engine);
 *     ek_cuda_step(engine, spectra, masks);                 [8][2][bins] each, one frame of every stream
 *
 * This is the network alone: spectra in, masks out. Fourier transforms and the product with the mask are the caller's.
 * A weight file is the same as for the CPU; an int8 file is refused. Status codes and ek_last_message() are those of edgekit.h; a call
 * that fails before anything was launched leaves the streams as they were. After EK_CUDA_FAILED the GPU's context may be lost: close.
 * An engine belongs to one thread at a time. All its work goes to one CUDA stream of its own, on the device that it was opened on. */
#ifndef EDGEKIT_CUDA_H
#define EDGEKIT_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "edgekit/edgekit.h"
#include "edgekit/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EK_CUDA_MAX_STREAMS 4096

typedef enum ek_cuda_precision {
  EK_CUDA_FP32 = 0,
  EK_CUDA_FP16 = 1   /* weights and activations; sums, the first layer's input and recurrent states stay fp32; activations saturate */
} ek_cuda_precision;

typedef enum ek_cuda_io {
  EK_CUDA_IO_HOST = 0,   /* spectra and masks in page-locked host memory that the GPU reads and writes itself: no copies in the graph */
  EK_CUDA_IO_DEVICE = 1  /* in device memory, for callers whose transforms run on the GPU too */
} ek_cuda_io;

/* Start from EK_CUDA_OPTIONS_INIT. */
typedef struct ek_cuda_options {
  size_t size;        /* sizeof(ek_cuda_options) */
  int32_t device;     /* number of the GPU */
  int32_t streams;    /* 1 .. EK_CUDA_MAX_STREAMS */
  int32_t precision;  /* ek_cuda_precision */
  int32_t io;         /* ek_cuda_io */
} ek_cuda_options;
#define EK_CUDA_OPTIONS_INIT {sizeof(ek_cuda_options), 0, 1, EK_CUDA_FP32, EK_CUDA_IO_HOST}

/* Set `size` to sizeof(ek_cuda_info) before asking. */
typedef struct ek_cuda_info {
  size_t size;
  int32_t streams, precision, io;
  int32_t bins;            /* of a spectrum and of a mask */
  int32_t delay;           /* steps by which a mask comes late: the network's depth with look-ahead, else 0 */
  int32_t graph_nodes;     /* of one step, as CUDA counts them in the captured graph */
  int32_t graphs;          /* captured: rings of frames repeat after `period` steps, and steps that drain a stream have graphs of their own */
  int32_t multiprocessors;
  int32_t compute_capability;  /* 72: sm_72 */
  uint64_t weight_bytes;   /* on the device, shared by all streams */
  uint64_t state_bytes;    /* on the device, all streams */
  uint64_t macs_per_frame; /* of one stream */
  char device[256];
} ek_cuda_info;

typedef struct ek_cuda_engine ek_cuda_engine;

/* Number of GPUs that CUDA sees; 0 without a driver. */
EK_API int32_t ek_cuda_devices(void);

/* Reads a weight file, uploads the weights once and captures the graph once. `options` may be null. */
EK_API ek_status ek_cuda_open(const char* path, const ek_cuda_options* options, ek_cuda_engine** engine);
EK_API ek_status ek_cuda_open_memory(const void* bytes, size_t n, const ek_cuda_options* options, ek_cuda_engine** engine);
EK_API ek_status ek_cuda_get_info(const ek_cuda_engine* engine, ek_cuda_info* info);
/* Null is allowed. */
EK_API void ek_cuda_close(ek_cuda_engine* engine);

/* One frame of every stream: spectrum [streams][2][bins] (real, imaginary; DC left out) -> mask of the same shape, before tanh; both in
 * host memory. The mask is that of the frame `delay` steps ago; the first `delay` masks of a stream belong to no frame. Returns when the
 * masks are there. A spectrum with a NaN or an infinity is EK_BAD_AUDIO, and no stream moves on. */
EK_API ek_status ek_cuda_step(ek_cuda_engine* engine, const float* spectrum, float* mask);

/* The same without copies and without waiting: write spectra to *spectrum, launch, wait, read *mask. Addresses are host or device
 * addresses as `io` says and stay the same. Do not write spectra while a launch is under way. Here a NaN or an infinity is taken as zero. */
EK_API ek_status ek_cuda_buffers(ek_cuda_engine* engine, float** spectrum, float** mask);
EK_API ek_status ek_cuda_launch(ek_cuda_engine* engine);
EK_API ek_status ek_cuda_wait(ek_cuda_engine* engine);
/* The engine's cudaStream_t, for events and for kernels that feed it. */
EK_API void* ek_cuda_stream(const ek_cuda_engine* engine);
/* Numbers that were taken as zero since the engine was opened. Waits. */
EK_API ek_status ek_cuda_bad_values(ek_cuda_engine* engine, uint32_t* count);

/* Stream number `stream` starts over with its next step, the others are not touched; -1: all. */
EK_API ek_status ek_cuda_reset(ek_cuda_engine* engine, int32_t stream);
/* The clip of stream number `stream` is over: its next `delay` steps ignore its spectra and give the masks that are still on their way,
 * exactly as a whole clip offline. Reset it before its next clip. Nothing to do where `delay` is 0. */
EK_API ek_status ek_cuda_end(ek_cuda_engine* engine, int32_t stream);

/* Complex convolution of a whole tensor, layouts and sizes as in ops.h, with batch norm and PReLU in the same kernel:
 *     y_re = gain[0] * sum_re + bias[0],   y = y > 0 ? y : slope * y
 * x, w and y are device pointers to fp32 or (EK_CUDA_FP16) fp16 numbers, gain and bias [2][c_out] to fp32; both may be null.
 * slope 1: no PReLU. Launched on `stream` (a cudaStream_t), does not wait. Limit: kernel[0] * kernel[1] <= 512. */
EK_API ek_status ek_cuda_complex_conv2d(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, int32_t precision, const void* x, const void* w,
                                        const float* gain, const float* bias, float slope, void* y, void* stream);

#ifdef __cplusplus
}
#endif
#endif
