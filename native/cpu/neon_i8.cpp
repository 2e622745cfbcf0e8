// int8 for every Arm core of 64 bits, exact without the dot product of ARMv8.2.
//
// Two products fit 16 bits (2 * 127 * 128 < 2^15) and no more, so every other multiplication is followed by one addition of pairs into
// 32 bits: 3 instructions for 16 products. The two products are the two of one complex number, Wr xr and Wi xi, and the second can be
// subtracted, so no third plane is needed. Inputs lie along the vector: nothing is broadcast, and sums are added up at the very end.
#include "neon_i8_rows.h"

namespace ek {
namespace {

// (a0 b0 a1 b1 a2 b2 a3 b3) of four vectors of four -> their sums in order.
EK_INLINE s32x4 row_sums(s32x4 a, s32x4 b, s32x4 c, s32x4 d) { return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)); }

struct WideningMac {
  static constexpr int kPanel = 4, kColumns = 2;
  static constexpr int kInputs = 8, kVectorInputs = 16;
  static constexpr bool kThird = false;

  // [16 inputs, the last time perhaps 8][channel][real, imaginary][input]
  template <class Weight>
  static int8_t* pack_tap(int8_t* packed, int c_in, Weight weight) {
    for (int c = 0; c < c_in; c += 16)
      for (int o = 0; o < kPanel; o++)
        for (int part = 0; part < 2; part++)
          for (int i = c; i < c_in && i < c + 16; i++) *packed++ = weight(part, o, i);
    return packed;
  }

  template <int N>
  static EK_INLINE void conv_sums(const Conv* conv, const Tap* taps, int n_taps, const int8_t* w, int column, s32x4 (&re)[1][N], s32x4 (&im)[1][N]) {
    s32x4 sum_re[kPanel][N], sum_im[kPanel][N];
#pragma GCC unroll 4
    for (int o = 0; o < kPanel; o++)
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) sum_re[o][n] = sum_im[o][n] = vdupq_n_s32(0);
    for (int t = 0; t < n_taps; t++) {
      const int c_in = conv->c_in[t], plane = rounded(c_in);
      const ptrdiff_t step = conv->step[t];
      const int8_t* x = static_cast<const int8_t*>(taps[t].x) + column * step;
      int c = 0;
      for (; c + 16 <= c_in; c += 16) {
        int8x16_t xr[N], xi[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) xr[n] = vld1q_s8(x + c + n * step), xi[n] = vld1q_s8(x + c + plane + n * step);
#pragma GCC unroll 4
        for (int o = 0; o < kPanel; o++, w += 32) {
          const int8x16_t wr = vld1q_s8(w), wi = vld1q_s8(w + 16);
#pragma GCC unroll 2
          for (int n = 0; n < N; n++) {
            const int16x8_t re_low = vmlsl_s8(vmull_s8(vget_low_s8(wr), vget_low_s8(xr[n])), vget_low_s8(wi), vget_low_s8(xi[n]));
            const int16x8_t im_low = vmlal_s8(vmull_s8(vget_low_s8(wr), vget_low_s8(xi[n])), vget_low_s8(wi), vget_low_s8(xr[n]));
            const int16x8_t re_high = vmlsl_high_s8(vmull_high_s8(wr, xr[n]), wi, xi[n]);
            const int16x8_t im_high = vmlal_high_s8(vmull_high_s8(wr, xi[n]), wi, xr[n]);
            sum_re[o][n] = vpadalq_s16(sum_re[o][n], re_low);
            sum_im[o][n] = vpadalq_s16(sum_im[o][n], im_low);
            sum_re[o][n] = vpadalq_s16(sum_re[o][n], re_high);
            sum_im[o][n] = vpadalq_s16(sum_im[o][n], im_high);
            hold_loads();
          }
        }
      }
      if (c < c_in) {
#pragma GCC unroll 4
        for (int o = 0; o < kPanel; o++, w += 16) {
          const int8x8_t wr = vld1_s8(w), wi = vld1_s8(w + 8);
#pragma GCC unroll 2
          for (int n = 0; n < N; n++) {
            const int8x8_t xr = vld1_s8(x + c + n * step), xi = vld1_s8(x + c + plane + n * step);
            sum_re[o][n] = vpadalq_s16(sum_re[o][n], vmlsl_s8(vmull_s8(wr, xr), wi, xi));
            sum_im[o][n] = vpadalq_s16(sum_im[o][n], vmlal_s8(vmull_s8(wr, xi), wi, xr));
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      re[0][n] = row_sums(sum_re[0][n], sum_re[1][n], sum_re[2][n], sum_re[3][n]);
      im[0][n] = row_sums(sum_im[0][n], sum_im[1][n], sum_im[2][n], sum_im[3][n]);
    }
  }

  // [4 rows][16 inputs of every segment in turn][row][input]
  template <class Weight>
  static int8_t* pack_gates(int8_t* packed, int gates, const int* segment, int n_segments, Weight weight) {
    for (int g = 0; g < gates; g++)
      for (int m = 0; m < kUnits; m += 4)
        for (int s = 0, from = 0; s < n_segments; from += segment[s++])
          for (int c = 0; c < segment[s]; c += 16)
            for (int j = m; j < m + 4; j++)
              for (int i = c; i < c + 16; i++) *packed++ = i < segment[s] ? weight(g, j, from + i) : int8_t{0};
    return packed;
  }

  static EK_INLINE void add_products(s32x4& sum, int8x16_t w, int8x16_t x) {
    sum = vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x));
  }

  template <int kGates>
  static EK_INLINE void gate_sums(const void* const* const (&x)[2], const int* segment, int n_segments, const int8_t* w,
                                  s32x4 (&to)[2][kGates][2]) {
    for (int g = 0; g < kGates; g++)
      for (int m = 0; m < 2; m++) {
        s32x4 sum[4][2];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[j][0] = sum[j][1] = vdupq_n_s32(0);
        for (int s = 0; s < n_segments; s++) {
          const int8_t *x0 = static_cast<const int8_t*>(x[0][s]), *x1 = static_cast<const int8_t*>(x[1][s]);
          for (int i = 0; i < segment[s]; i += 16) {
            const int8x16_t v0 = vld1q_s8(x0 + i), v1 = vld1q_s8(x1 + i);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++, w += 16) {
              const int8x16_t row = vld1q_s8(w);
              add_products(sum[j][0], row, v0);
              add_products(sum[j][1], row, v1);
            }
          }
        }
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) to[k][g][m] = row_sums(sum[0][k], sum[1][k], sum[2][k], sum[3][k]);
      }
  }

  // [4 rows][16 inputs][row][input]
  template <class Weight>
  static int8_t* pack_dense(int8_t* packed, int n, Weight weight) {
    for (int m = 0; m < kLanes; m += 4)
      for (int c = 0; c < n; c += 16)
        for (int j = m; j < m + 4; j++)
          for (int i = c; i < c + 16; i++) *packed++ = weight(j, i);
    return packed;
  }

  static EK_INLINE void dense_sums(const int8_t* x, int n, const int8_t* w, s32x4 (&to)[4]) {
    for (int m = 0; m < 4; m++) {
      s32x4 sum[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
      for (int i = 0; i < n; i += 16) {
        const int8x16_t v = vld1q_s8(x + i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++, w += 16) add_products(sum[j], vld1q_s8(w), v);
      }
      to[m] = row_sums(sum[0], sum[1], sum[2], sum[3]);
    }
  }
};

}  // namespace

extern const Row neon_i8 = i8_row<WideningMac>("neon_i8");

}  // namespace ek
