// What the Arm rows share: the affine form and PReLU on sums in registers, how a frame is written in either format, the first and the
// last layer, and the pointwise half of a recurrent cell. All of it in an anonymous namespace, so that each file keeps its own copy:
// one of them is compiled for a newer instruction set than the others.
#ifndef EK_CPU_NEON_COMMON_H
#define EK_CPU_NEON_COMMON_H

#include <arm_neon.h>

#include "pack.h"

#define EK_INLINE inline __attribute__((always_inline))
#define EK_APART __attribute__((noinline))  // blocks of different width, so that each has all registers to itself

namespace ek {
namespace {

// Keeps loads on their side. GCC's scheduler would gather those of a whole unrolled loop at its beginning, and spill what they bring.
EK_INLINE void hold_loads() { asm volatile("" ::: "memory"); }

// sum +- w * lane kLane of x. One instruction each, as its intrinsic; but an intrinsic gives a new variable, and where 28 of 32 registers
// are taken GCC then moves sums about: 10 to 20 moves for 128 multiplications, none this way.
template <int kLane>
EK_INLINE void add_product(float32x4_t& sum, float32x4_t w, float32x4_t x) {
  asm("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(kLane));
}
template <int kLane>
EK_INLINE void subtract_product(float32x4_t& sum, float32x4_t w, float32x4_t x) {
  asm("fmls %0.4s, %1.4s, %2.s[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(kLane));
}

using f32x4 = float32x4_t;
using s32x4 = int32x4_t;

// ---- numbers

EK_INLINE f32x4 prelu(f32x4 y, float slope) { return vbslq_f32(vcgtzq_f32(y), y, vmulq_n_f32(y, slope)); }

// clamp(round_half_even(y * inv_scale), -127, 127). fmaxnm gives the number where the other is a NaN, so a NaN becomes -127.
EK_INLINE s32x4 quantized(f32x4 y, float inv_scale) {
  const f32x4 q = vmaxnmq_f32(vmulq_n_f32(y, inv_scale), vdupq_n_f32(-127.0f));
  return vcvtnq_s32_f32(vminq_f32(q, vdupq_n_f32(127.0f)));
}

// exp to 2e-7 of its value: 2^n * e^r with |r| <= ln 2 / 2, e^r as a sum up to r^6 / 720. Saturates beyond +-87; a NaN stays one.
EK_INLINE f32x4 exp(f32x4 x) {
  x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(87.0f)), vdupq_n_f32(-87.0f));
  const f32x4 n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
  // ln 2 in two pieces, the first short enough that n times it is exact.
  f32x4 r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
  f32x4 p = vfmaq_f32(vdupq_n_f32(1.0f / 120), r, vdupq_n_f32(1.0f / 720));
  p = vfmaq_f32(vdupq_n_f32(1.0f / 24), r, p);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 6), r, p);
  p = vfmaq_f32(vdupq_n_f32(0.5f), r, p);
  p = vfmaq_f32(vdupq_n_f32(1.0f), r, p);
  p = vfmaq_f32(vdupq_n_f32(1.0f), r, p);
  const s32x4 exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(p, vreinterpretq_f32_s32(exponent));
}

EK_INLINE f32x4 sigmoid(f32x4 x) {
  const f32x4 one = vdupq_n_f32(1.0f);
  return vdivq_f32(one, vaddq_f32(one, exp(vnegq_f32(x))));
}

EK_INLINE f32x4 tanh(f32x4 x) {
  const f32x4 one = vdupq_n_f32(1.0f), e = exp(vmulq_n_f32(vabsq_f32(x), -2.0f));
  const f32x4 magnitude = vdivq_f32(vsubq_f32(one, e), vaddq_f32(one, e));
  return vbslq_f32(vdupq_n_u32(0x80000000u), x, magnitude);
}

// ---- frames

struct FloatFrame {
  using Element = float;
  static constexpr Format kFormat = EK_F32;
  static EK_INLINE void put(float* y, f32x4 v, float) { vst1q_f32(y, v); }
  // The third plane, where there is one, is the sum that Gauss's first product needs.
  static EK_INLINE void put_third(float* y, f32x4 re, f32x4 im, float) { vst1q_f32(y, vaddq_f32(re, im)); }
};

struct IntFrame {
  using Element = int8_t;
  static constexpr Format kFormat = EK_I8;
  static EK_INLINE void put4(int8_t* y, s32x4 q) {
    const int16x4_t narrow = vmovn_s32(q);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(narrow, narrow));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    __builtin_memcpy(y, &four, 4);
  }
  static EK_INLINE void put(int8_t* y, f32x4 v, float inv_scale) { put4(y, quantized(v, inv_scale)); }
  // Here it is -imag: a dot product cannot subtract.
  static EK_INLINE void put_third(int8_t* y, f32x4, f32x4 im, float inv_scale) { put4(y, vnegq_s32(quantized(im, inv_scale))); }
};

// What changed in four channels of one column of int8, clamped; false where it does not fit.
EK_INLINE bool write_change(const int8_t* now, const int8_t* before, int8_t* change, ptrdiff_t plane, bool third) {
  const auto read = [&](const int8_t* x) __attribute__((always_inline)) {
    uint32_t re, im;
    __builtin_memcpy(&re, x, 4);
    __builtin_memcpy(&im, x + plane, 4);
    return vcreate_s8(uint64_t{im} << 32 | re);
  };
  const auto write = [](int8_t* y, uint64_t four) __attribute__((always_inline)) {
    const uint32_t bytes = static_cast<uint32_t>(four);
    __builtin_memcpy(y, &bytes, 4);
  };
  const int8x8_t a = read(now), b = read(before), clamped = vmax_s8(vqsub_s8(a, b), vdup_n_s8(-127));
  const uint64_t pair = vget_lane_u64(vreinterpret_u64_s8(clamped), 0);
  write(change, pair);
  write(change + plane, pair >> 32);
  if (third) write(change + 2 * plane, vget_lane_u64(vreinterpret_u64_s8(vneg_s8(clamped)), 0) >> 32);
  return pair == vget_lane_u64(vreinterpret_u64_s8(vsub_s8(a, b)), 0);
}

// Four channels of one column.
template <class Frame>
EK_INLINE void write_complex(const Out* out, int column, int channel, f32x4 re, f32x4 im, float inv_scale, bool third) {
  if (out->frame) {
    auto* y = static_cast<typename Frame::Element*>(out->frame) + static_cast<ptrdiff_t>(column) * out->frame_step + channel;
    Frame::put(y, re, inv_scale);
    Frame::put(y + out->channels, im, inv_scale);
    if (third) Frame::put_third(y + 2 * out->channels, re, im, inv_scale);
    if constexpr (Frame::kFormat == EK_I8) {
      if (out->change) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(column) * out->frame_step + channel;
        if (!write_change(y, static_cast<const int8_t*>(out->before) + at, static_cast<int8_t*>(out->change) + at, out->channels, third)) {
          say_beyond(out->beyond);
        }
      }
    }
  }
  if (out->floats) {
    float* y = out->floats + static_cast<ptrdiff_t>(column) * out->floats_step + channel;
    vst1q_f32(y, re);
    vst1q_f32(y + out->channels, im);
  }
}

// Sums of four channels of one column -> batch norm, PReLU, output. The product and the sum are rounded apart: see kernels.h.
template <class Frame>
EK_INLINE void finish(const Conv* conv, const Out* out, int column, int channel, f32x4 re, f32x4 im, bool third) {
  re = vaddq_f32(vmulq_f32(vld1q_f32(conv->gain[0] + channel), re), vld1q_f32(conv->bias[0] + channel));
  im = vaddq_f32(vmulq_f32(vld1q_f32(conv->gain[1] + channel), im), vld1q_f32(conv->bias[1] + channel));
  write_complex<Frame>(out, column, channel, prelu(re, conv->slope), prelu(im, conv->slope), conv->inv_scale, third);
}

// Channels that exist only because of rounding.
template <class Frame>
EK_INLINE void write_zeros(const Out* out, int column, int channel, int end, bool third) {
  const f32x4 zero = vdupq_n_f32(0.0f);
  for (; channel < end; channel += 4) write_complex<Frame>(out, column, channel, zero, zero, 0.0f, third);
}

template <class Frame>
void store(const float* x, float inv_scale, void* y, int n) {
  for (int i = 0; i < n; i += 4) Frame::put(static_cast<typename Frame::Element*>(y) + i, vld1q_f32(x + i), inv_scale);
}

template <class Frame>
void store_row(const float* re, const float* im, float inv_scale, void* row, int channels, int planes) {
  const Out out{row, nullptr, 0, 0, channels};
  for (int c = 0; c < channels; c += 4) write_complex<Frame>(&out, 0, c, vld1q_f32(re + c), vld1q_f32(im + c), inv_scale, planes == 3);
}

// ---- packing

// What every pack_conv begins with: sizes, gains and biases. `panel` channels are computed together, `columns` of them at a time;
// an item is one such block. Items run through all columns of a panel before the next, so that its weights are still near.
inline void begin_conv(const ConvSpec* spec, Carver& carver, Conv* conv, int panel, int columns, int c_in_to) {
  const int c_out = rounded(spec->c_out);
  float* affine[4];
  for (int i = 0; i < 4; i++) {
    affine[i] = take<float>(carver, c_out);
    copy_padded(i < 2 ? spec->gain[i] : spec->bias[i - 2], spec->c_out, affine[i], c_out);
  }
  if (!carver.base) return;
  *conv = Conv{};
  conv->c_out = c_out;
  conv->columns = spec->columns;
  conv->n_taps = spec->n_taps;
  conv->block = columns;
  conv->items = rounded(spec->c_out, panel) / panel * (rounded(spec->columns, columns) / columns);
  for (int t = 0; t < spec->n_taps; t++) {
    conv->c_in[t] = rounded(spec->sources[t].c_in, c_in_to);
    conv->step[t] = spec->sources[t].step;
  }
  for (int i = 0; i < 2; i++) conv->gain[i] = affine[i], conv->bias[i] = affine[2 + i];
  conv->slope = spec->slope;
  conv->inv_scale = spec->inv_scale;
  conv->takes_turns = spec->takes_turns;
}

// The weight from channel c of a tap to channel o; zero where either is there only because of rounding. `at` is where the tap begins.
template <class T>
inline T weight_at(const T* w, size_t at, int c_out, int c_in, int o, int c) {
  return o < c_out && c < c_in ? w[at + static_cast<size_t>(o) * c_in + c] : T{0};
}

// ---- first layer: one complex channel in, f32

template <class Frame, int kColumns>
EK_APART void first_block(const ConvSpec* spec, const Tap* taps, const Out* out, const float* w, const Conv* affine, int column, int channel, bool third) {
  f32x4 re[2][kColumns], im[2][kColumns];
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) re[m][n] = im[m][n] = vdupq_n_f32(0.0f);
  for (int t = 0; t < spec->n_taps; t++, w += 16) {
    const int step = spec->sources[t].step;
    const float* x = static_cast<const float*>(taps[t].x) + static_cast<ptrdiff_t>(column) * step;
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) {
      const float32x2_t pair = vld1_f32(x + static_cast<ptrdiff_t>(n) * step);
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) {
        const f32x4 wr = vld1q_f32(w + 4 * m), wi = vld1q_f32(w + 8 + 4 * m);
        re[m][n] = vfmaq_lane_f32(re[m][n], wr, pair, 0);
        im[m][n] = vfmaq_lane_f32(im[m][n], wr, pair, 1);
        re[m][n] = vfmsq_lane_f32(re[m][n], wi, pair, 1);
        im[m][n] = vfmaq_lane_f32(im[m][n], wi, pair, 0);
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) {
      const int in_block = 4 * m;
      const f32x4 y_re = vaddq_f32(vmulq_f32(vld1q_f32(affine->gain[0] + in_block), re[m][n]), vld1q_f32(affine->bias[0] + in_block));
      const f32x4 y_im = vaddq_f32(vmulq_f32(vld1q_f32(affine->gain[1] + in_block), im[m][n]), vld1q_f32(affine->bias[1] + in_block));
      write_complex<Frame>(out, column + n, channel + in_block, prelu(y_re, spec->slope), prelu(y_im, spec->slope), spec->inv_scale, third);
    }
}

// Weights come unpacked and end where they end, so eight channels at a time are copied out, with zeros beyond the last.
template <class Frame, bool kThird>
void first(const ConvSpec* spec, const Tap* taps, const Out* out, int first_column, int last_column) {
  const bool third = Frame::kFormat == EK_F32 ? spec->algorithm == EK_GAUSS : kThird;
  for (int channel = 0; channel < rounded(spec->c_out); channel += 8) {
    float w[kMaxTaps * 16], gain[2][8], bias[2][8];
    for (int i = 0; i < 8; i++) {
      const int o = channel + i;
      for (int part = 0; part < 2; part++) {
        gain[part][i] = o < spec->c_out ? spec->gain[part][o] : 0.0f;
        bias[part][i] = o < spec->c_out ? spec->bias[part][o] : 0.0f;
        for (int t = 0; t < spec->n_taps; t++) w[t * 16 + part * 8 + i] = o < spec->c_out ? spec->w[part][t * spec->c_out + o] : 0.0f;
      }
    }
    Conv affine{};
    for (int part = 0; part < 2; part++) affine.gain[part] = gain[part], affine.bias[part] = bias[part];
    int column = first_column;
    for (; column + 4 <= last_column; column += 4) first_block<Frame, 4>(spec, taps, out, w, &affine, column, channel, third);
    for (; column < last_column; column++) first_block<Frame, 1>(spec, taps, out, w, &affine, column, channel, third);
  }
}

// ---- last layer: one complex channel out, f32

template <int kColumns>
EK_INLINE void last_block(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int column) {
  f32x4 re[kColumns], im[kColumns];
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++) re[n] = im[n] = vdupq_n_f32(0.0f);
  size_t at = 0;
  for (int t = 0; t < spec->n_taps; t++) {
    const int c_in = spec->sources[t].c_in, plane = rounded(c_in);
    const ptrdiff_t step = spec->sources[t].step;
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
    const float *w_re = spec->w[0] + at, *w_im = spec->w[1] + at;
    const auto four = [&](int c, f32x4 wr, f32x4 wi) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++) {
        const f32x4 xr = vld1q_f32(x + n * step + c), xi = vld1q_f32(x + n * step + plane + c);
        re[n] = vfmsq_f32(vfmaq_f32(re[n], wr, xr), wi, xi);
        im[n] = vfmaq_f32(vfmaq_f32(im[n], wr, xi), wi, xr);
      }
    };
    int c = 0;
    for (; c + 4 <= c_in; c += 4) four(c, vld1q_f32(w_re + c), vld1q_f32(w_im + c));
    if (c < c_in) {  // rows of a frame go on with zeros, weights do not
      float wr[4] = {}, wi[4] = {};
      for (int i = 0; c + i < c_in; i++) wr[i] = w_re[c + i], wi[i] = w_im[c + i];
      four(c, vld1q_f32(wr), vld1q_f32(wi));
    }
    at += c_in;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++) {
    const float sum_re = spec->gain[0][0] * vaddvq_f32(re[n]) + spec->bias[0][0];
    const float sum_im = spec->gain[1][0] * vaddvq_f32(im[n]) + spec->bias[1][0];
    y_re[2 * (column + n)] = sum_re > 0.0f ? sum_re : spec->slope * sum_re;
    y_im[2 * (column + n)] = sum_im > 0.0f ? sum_im : spec->slope * sum_im;
  }
}

inline void last(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int first_column, int last_column) {
  int column = first_column;
  for (; column + 4 <= last_column; column += 4) last_block<4>(spec, taps, y_re, y_im, column);
  for (; column < last_column; column++) last_block<1>(spec, taps, y_re, y_im, column);
}

// ---- recurrent cells

constexpr int kUnits = 8;  // hidden units of one item, all their gates together

inline int gates_of(CellKind kind) { return kind == EK_LSTM ? 4 : 3; }

// What every pack_cell begins with. Behind the lengths of the segments stands that of the state. Scales and biases as [item][gate][unit], zeros for units that exist only because of rounding.
inline void begin_cell(const CellSpec* spec, Carver& carver, Cell* cell, int n_to) {
  const int gates = gates_of(spec->kind), items = rounded(spec->hidden, kUnits) / kUnits;
  int* segment = take<int>(carver, spec->n_segments + 1);
  const float* from[4] = {spec->scale_x, spec->scale_h, spec->bias_x, spec->bias_h};
  float* piece[4];
  for (int i = 0; i < 4; i++) piece[i] = take<float>(carver, static_cast<size_t>(items) * gates * kUnits);
  if (!carver.base) return;
  for (int s = 0; s < spec->n_segments; s++) segment[s] = rounded(spec->segment[s], n_to);
  segment[spec->n_segments] = rounded(spec->hidden, n_to);
  for (int i = 0; i < 4; i++)
    for (int item = 0; item < items; item++)
      for (int g = 0; g < gates; g++)
        for (int j = 0; j < kUnits; j++) {
          const int unit = item * kUnits + j;
          piece[i][(item * gates + g) * kUnits + j] = from[i] && unit < spec->hidden ? from[i][g * spec->hidden + unit] : 0.0f;
        }
  *cell = Cell{};
  cell->kind = spec->kind;
  cell->hidden = rounded(spec->hidden);
  cell->n_segments = spec->n_segments;
  cell->segment = segment;
  cell->items = items;
  cell->scale_x = piece[0], cell->scale_h = piece[1], cell->bias_x = piece[2], cell->bias_h = piece[3];
}

// What the gates of one item got from the input and from the old state, scaled and with their biases: [input k][gate][unit].
struct GateSums {
  float from_x[2][4][kUnits];
  float from_h[2][4][kUnits];
};

template <class Frame>
void pointwise(const Cell* cell, const CellRun* run, int item, const GateSums& sums) {
  for (int k = 0; k < 2; k++)
    for (int j = 0; j < kUnits; j += 4) {
      const int unit = item * kUnits + j;
      const auto x = [&](int g) { return vld1q_f32(&sums.from_x[k][g][j]); };
      const auto h = [&](int g) { return vld1q_f32(&sums.from_h[k][g][j]); };
      f32x4 y;
      if (cell->kind == EK_LSTM) {
        const f32x4 in = sigmoid(vaddq_f32(x(0), h(0))), forget = sigmoid(vaddq_f32(x(1), h(1)));
        const f32x4 g = tanh(vaddq_f32(x(2), h(2))), open = sigmoid(vaddq_f32(x(3), h(3)));
        const f32x4 c = vaddq_f32(vmulq_f32(forget, vld1q_f32(run->c[k] + unit)), vmulq_f32(in, g));
        vst1q_f32(run->c[k] + unit, c);
        y = vmulq_f32(open, tanh(c));
      } else {
        const f32x4 r = sigmoid(vaddq_f32(x(0), h(0))), z = sigmoid(vaddq_f32(x(1), h(1)));
        const f32x4 n = tanh(vaddq_f32(x(2), vmulq_f32(r, h(2))));
        const f32x4 old = vld1q_f32(run->h_f32_old[k] + unit);
        y = vaddq_f32(vmulq_f32(vsubq_f32(vdupq_n_f32(1.0f), z), n), vmulq_f32(z, old));
      }
      vst1q_f32(run->h_f32[k] + unit, y);
      Frame::put(static_cast<typename Frame::Element*>(run->h_new[k]) + unit, y, 127.0f);
    }
}

}  // namespace
}  // namespace ek
#endif
