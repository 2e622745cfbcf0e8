/* Complex convolution on whole tensors, float32.
 *
 * Channels are stacked: the first c_in channels of x are the real parts, the last c_in the imaginary parts, and so in y.
 *
 *     x  [n][2 * c_in][f][t]
 *     w  [2][c_out][c_in][kf][kt]      w[0] real, w[1] imaginary; transposed convolution: [2][c_in][c_out][kf][kt]
 *     b  [2][c_out]                    added as written, b[0] to the real rows; may be NULL
 *     y  [n][2 * c_out][f_out][t_out]
 *
 *     y_re = w_re * x_re - w_im * x_im + b[0],    y_im = w_re * x_im + w_im * x_re + b[1]
 *
 * where * is the convolution that PyTorch and ONNX mean: no flip of the kernel, zeros outside of x, f is frequency and t is time.
 *
 *     convolution             f_out = (f + padding[0] + padding[2] - kf) / stride_f + 1
 *     transposed convolution  f_out = (f - 1) * stride_f + kf - padding[0] - padding[2]
 *
 * and t_out likewise with padding[1] and padding[3]. What PyTorch calls output_padding makes the padding at the end that much
 * smaller. Order of padding as in ONNX: frequency begin, time begin, frequency end, time end.
 *
 * Limits: c_in, c_out 1..4096; kf * kt <= 32 (transposed: ceil(kf / stride_f) * ceil(kt / stride_t) <= 32 and each <= 64);
 * strides 1..16; padding 0..4096; no dilation, no groups. Tensors are dense, in the order above, aligned to 4 bytes.
 *
 * The calls may run at the same time in several threads. They keep nothing between calls but what ek_complex_conv2d_pack returns.
 */
#ifndef EDGEKIT_OPS_H
#define EDGEKIT_OPS_H

#include <stdint.h>

#include "edgekit/edgekit.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ek_complex_conv2d_shape {
  int32_t transposed;    /* 0 convolution, 1 transposed convolution */
  int32_t c_in, c_out;   /* complex channels: half of those of x and y */
  int32_t f;             /* frequencies of x */
  int32_t kernel[2];     /* frequency, time */
  int32_t stride[2];     /* frequency, time */
  int32_t padding[4];    /* frequency begin, time begin, frequency end, time end */
} ek_complex_conv2d_shape;

/* Size of the output for t frames of input. EK_BAD_ARGUMENT or EK_UNSUPPORTED where a limit is broken or nothing would come out. */
EK_API ek_status ek_complex_conv2d_output(const ek_complex_conv2d_shape* shape, int64_t t, int64_t* f_out, int64_t* t_out);

/* The whole tensor in one call, in the calling thread. Weights are packed in every call: cheap beside many frames,
 * dear beside one. For many calls with the same weights use ek_complex_conv2d_pack. `shape->transposed` must agree with the name. */
EK_API ek_status ek_complex_conv2d_f32(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, const float* x, const float* w,
                                       const float* b, float* y);
EK_API ek_status ek_complex_conv_transpose2d_f32(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, const float* x,
                                                 const float* w, const float* b, float* y);

/* The same in two steps: weights packed for this CPU once, then any number of tensors of any n and t. */
typedef struct ek_complex_conv2d ek_complex_conv2d;
EK_API ek_status ek_complex_conv2d_pack(const ek_complex_conv2d_shape* shape, const float* w, const float* b, ek_complex_conv2d** packed);
EK_API void ek_complex_conv2d_free(ek_complex_conv2d* packed); /* NULL is fine */

/* Output frames first..last-1 of all n * t_out; frame number i is time i % t_out of clip i / t_out. A caller with threads of its
 * own deals ranges out to them: ranges that do not overlap may run at the same time. The whole tensor is 0..n * t_out. */
EK_API ek_status ek_complex_conv2d_run(const ek_complex_conv2d* packed, int64_t n, int64_t t, const float* x, float* y, int64_t first,
                                       int64_t last);

#ifdef __cplusplus
}
#endif
#endif
