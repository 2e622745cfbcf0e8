// int8 with the dot product of ARMv8.2 (Cortex-A55, A75 and later; Jetson Orin, not Xavier). Compiled with -march=armv8.2-a+dotprod.
//
// sdot by element: every lane of four outputs adds 4 products with the same 4 inputs. 8 complex channels by 4 columns stay in
// registers (16 sums); 16 inputs of a column come with one load a plane, and no broadcast is needed. Real weights go first, with the real
// and the imaginary plane, then imaginary weights with the real plane and -imag, since a dot product cannot subtract: that way 8
// vectors of input and 2 of weights are alive at a time, 26 of 32 registers. 128 sdot for 28 loads.
#include "neon_i8_rows.h"

namespace ek {
namespace {

// Every lane of sum gets the dot product of its 4 bytes of w with 4 bytes of x; see add_product for why it is not the intrinsic.
template <int kLane>
EK_INLINE void add_dots(s32x4& sum, int8x16_t w, int8x16_t x) {
  asm("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(kLane));
}

struct DotMac {
  static constexpr int kPanel = 8, kColumns = 4;
  static constexpr int kInputs = 4, kVectorInputs = 4;
  static constexpr bool kThird = true;

  // [16 inputs, the last time perhaps less][real, imaginary][4 inputs][channel][input]
  template <class Weight>
  static int8_t* pack_tap(int8_t* packed, int c_in, Weight weight) {
    for (int c = 0; c < c_in; c += 16)
      for (int part = 0; part < 2; part++)
        for (int four = c; four < c_in && four < c + 16; four += 4)
          for (int o = 0; o < kPanel; o++)
            for (int i = four; i < four + 4; i++) *packed++ = weight(part, o, i);
    return packed;
  }

  // Four inputs (lane kLane of a, b): p += w a, q += w b.
  template <int kLane, int N>
  static EK_INLINE void step(s32x4 (&p)[2][N], s32x4 (&q)[2][N], const int8_t* w, const int8x16_t (&a)[N], const int8x16_t (&b)[N]) {
    const int8x16_t v[2] = {vld1q_s8(w), vld1q_s8(w + 16)};
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) {
        add_dots<kLane>(p[m][n], v[m], a[n]);
        add_dots<kLane>(q[m][n], v[m], b[n]);
      }
  }

  template <int kFours, int N>
  static EK_INLINE const int8_t* steps(s32x4 (&p)[2][N], s32x4 (&q)[2][N], const int8_t* w, const int8x16_t (&a)[N], const int8x16_t (&b)[N]) {
    step<0>(p, q, w, a, b);
    if constexpr (kFours > 1) hold_loads(), step<1>(p, q, w + 32, a, b);
    if constexpr (kFours > 2) hold_loads(), step<2>(p, q, w + 64, a, b);
    if constexpr (kFours > 3) hold_loads(), step<3>(p, q, w + 96, a, b);
    return w + 32 * kFours;
  }

  template <int kFours, int N>
  static EK_INLINE const int8_t* complex_steps(s32x4 (&re)[2][N], s32x4 (&im)[2][N], const int8_t* w, const int8_t* x, int plane, ptrdiff_t step) {
    int8x16_t real[N], other[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) real[n] = vld1q_s8(x + n * step), other[n] = vld1q_s8(x + plane + n * step);
    w = steps<kFours>(re, im, w, real, other);
    hold_loads();
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) other[n] = vld1q_s8(x + 2 * plane + n * step);
    return steps<kFours>(re, im, w, other, real);
  }

  template <int N>
  static EK_INLINE void conv_sums(const Conv* conv, const Tap* taps, int n_taps, const int8_t* w, int column, s32x4 (&re)[2][N], s32x4 (&im)[2][N]) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) re[m][n] = im[m][n] = vdupq_n_s32(0);
    for (int t = 0; t < n_taps; t++) {
      const int c_in = conv->c_in[t], plane = rounded(c_in);
      const ptrdiff_t step = conv->step[t];
      const int8_t* x = static_cast<const int8_t*>(taps[t].x) + column * step;
      int left = c_in;
      for (; left >= 16; left -= 16, x += 16) w = complex_steps<4>(re, im, w, x, plane, step);
      if (left == 12) w = complex_steps<3>(re, im, w, x, plane, step);
      else if (left == 8) w = complex_steps<2>(re, im, w, x, plane, step);
      else if (left == 4) w = complex_steps<1>(re, im, w, x, plane, step);
    }
  }

  // [4 inputs of every segment in turn][gate][unit][input]
  template <class Weight>
  static int8_t* pack_gates(int8_t* packed, int gates, const int* segment, int n_segments, Weight weight) {
    for (int s = 0, from = 0; s < n_segments; from += segment[s++])
      for (int c = 0; c < segment[s]; c += 4)
        for (int g = 0; g < gates; g++)
          for (int j = 0; j < kUnits; j++)
            for (int i = c; i < c + 4; i++) *packed++ = i < segment[s] ? weight(g, j, from + i) : int8_t{0};
    return packed;
  }

  template <int kLane, int kGates>
  static EK_INLINE void gate_step(s32x4 (&sum)[2][kGates][2], const int8_t* w, int8x16_t x0, int8x16_t x1) {
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) {
        const int8x16_t v = vld1q_s8(w + (2 * g + m) * 16);
        add_dots<kLane>(sum[0][g][m], v, x0);
        add_dots<kLane>(sum[1][g][m], v, x1);
      }
  }

  template <int kGates>
  static EK_INLINE void gate_sums(const void* const* const (&x)[2], const int* segment, int n_segments, const int8_t* w, s32x4 (&sum)[2][kGates][2]) {
    constexpr int kFour = kGates * kUnits * 4;
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) sum[0][g][m] = sum[1][g][m] = vdupq_n_s32(0);
    for (int s = 0; s < n_segments; s++) {
      const int8_t *x0 = static_cast<const int8_t*>(x[0][s]), *x1 = static_cast<const int8_t*>(x[1][s]);
      int left = segment[s];
      for (; left >= 16; left -= 16, x0 += 16, x1 += 16, w += 4 * kFour) {
        const int8x16_t v0 = vld1q_s8(x0), v1 = vld1q_s8(x1);
        gate_step<0, kGates>(sum, w, v0, v1);
        hold_loads();
        gate_step<1, kGates>(sum, w + kFour, v0, v1);
        hold_loads();
        gate_step<2, kGates>(sum, w + 2 * kFour, v0, v1);
        hold_loads();
        gate_step<3, kGates>(sum, w + 3 * kFour, v0, v1);
      }
      if (left > 0) {
        const int8x16_t v0 = vld1q_s8(x0), v1 = vld1q_s8(x1);
        gate_step<0, kGates>(sum, w, v0, v1);
        if (left > 4) gate_step<1, kGates>(sum, w + kFour, v0, v1);
        if (left > 8) gate_step<2, kGates>(sum, w + 2 * kFour, v0, v1);
        w += left / 4 * kFour;
      }
    }
  }

  // [4 inputs][row][input]
  template <class Weight>
  static int8_t* pack_dense(int8_t* packed, int n, Weight weight) {
    for (int c = 0; c < n; c += 4)
      for (int j = 0; j < kLanes; j++)
        for (int i = c; i < c + 4; i++) *packed++ = weight(j, i);
    return packed;
  }

  template <int kLane>
  static EK_INLINE void dense_step(s32x4 (&sum)[4], const int8_t* w, int8x16_t x) {
#pragma GCC unroll 4
    for (int m = 0; m < 4; m++) add_dots<kLane>(sum[m], vld1q_s8(w + 16 * m), x);
  }

  static EK_INLINE void dense_sums(const int8_t* x, int n, const int8_t* w, s32x4 (&to)[4]) {
    s32x4 even[4], odd[4];  // two sums a row: four alone would wait for one another
#pragma GCC unroll 4
    for (int m = 0; m < 4; m++) even[m] = odd[m] = vdupq_n_s32(0);
    for (; n >= 16; n -= 16, x += 16, w += 256) {
      const int8x16_t v = vld1q_s8(x);
      dense_step<0>(even, w, v);
      dense_step<1>(odd, w + 64, v);
      dense_step<2>(even, w + 128, v);
      dense_step<3>(odd, w + 192, v);
    }
    if (n > 0) {
      const int8x16_t v = vld1q_s8(x);
      dense_step<0>(even, w, v);
      if (n > 4) dense_step<1>(odd, w + 64, v);
      if (n > 8) dense_step<2>(even, w + 128, v);
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; m++) to[m] = vaddq_s32(even[m], odd[m]);
  }
};

}  // namespace

extern const Row neon_dotprod_i8 = i8_row<DotMac>("neon_dotprod_i8");

}  // namespace ek
