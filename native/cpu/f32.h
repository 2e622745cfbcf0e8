// f32 for x86.h, for vectors of any width: four multiplications per complex product, or Gauss's three.
//
// Gauss: s = Wr (xr + xi), im = s + (Wi - Wr) xr, re = s - (Wr + Wi) xi. Frames then hold re + im as third plane. These are three passes over
// the taps, each with its own weights and its own plane; one pass with three sums per output would need more registers than there are.
// Weights are half as many bytes again, which below 8 columns costs more time than the multiplications saved; and a single panel would be
// bound by loads.
#ifndef EK_CPU_F32_H
#define EK_CPU_F32_H

#include "x86.h"

namespace ek {
namespace {

template <class Vec>
struct F32 : FloatSums<Vec> {
  using V = Vec;
  using Element = float;
  using Weight = float;
  using Weights = typename V::Floats;
  using Sum = typename V::Floats;
  struct Input {
    typename V::Floats re, im;
  };

  static constexpr bool kStoresSum = false;  // adding costs nothing beside so many products, and more weights would not stay in the cache
  static EK_INLINE Sum widen(const float* x) { return V::load(x); }
  static EK_INLINE Weights load_sum(const char* w, size_t half) { return load(w) + load(w + half); }
  static EK_INLINE bool write_change(const float* now, const float* before, float* change, ptrdiff_t plane, int planes) {
    return write_change_of_floats<F32>(now, before, change, plane, planes);
  }
  static EK_INLINE int planes(int algorithm) { return algorithm == EK_GAUSS ? 3 : 2; }
  static EK_INLINE Sum zero() { return V::zero(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return a + b; }
  static EK_INLINE Sum to_float(Sum sum) { return sum; }
  static EK_INLINE Sum scaled(Sum sum, const float*, const float* bias) { return sum + V::load(bias); }

  static EK_INLINE Sum spread(const char* x) { return V::all(*reinterpret_cast<const float*>(x)); }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane)}; }
  static EK_INLINE Weights load(const char* w) { return V::load(reinterpret_cast<const float*>(w)); }
  static EK_INLINE Sum dot(Sum sum, Weights w, Sum x) { return V::plus_product(w, x, sum); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = V::plus_product(w_re, x.re, re);
    im = V::plus_product(w_re, x.im, im);
    re = V::minus_product(w_im, x.im, re);
    im = V::plus_product(w_im, x.re, im);
  }

  static Weight weight(const float* w, const int8_t*, size_t i) { return w[i]; }
  static Weight sum_weight(const float* w, const int8_t*, size_t i, size_t k) { return w[i] + w[k]; }
  static int32_t start_of(const int8_t*, int) { return 0; }

  static EK_INLINE void store(float* to, Sum y, float) { V::store(to, y); }
  static EK_INLINE void store_complex(float* row, ptrdiff_t plane, Sum re, Sum im, float, int planes) {
    V::store(row, re);
    V::store(row + plane, im);
    if (planes == 3) V::store(row + 2 * plane, re + im);
  }
};

constexpr int kGaussFlag = 1 << 16;     // in Conv::block
constexpr int kGaussColumns = 16;       // an item: all of them before the next pass, so that a pass's weights are read from near
constexpr int kGaussPanels = 2;
constexpr int kGaussPasses = 3;
constexpr int kGaussPlane[kGaussPasses] = {2, 0, 1};

template <class V>
EK_INLINE bool gauss_pays(const ConvSpec* spec) { return spec->algorithm == EK_GAUSS && spec->columns >= 8 && spec->c_out > V::kLanes; }

// Adds weights x one plane of the input over some taps, in registers.
template <class V, int kColumns, int kPanels, Frames kFrames>
EK_INLINE void gauss_taps(const Conv* conv, const Tap* taps, int n_taps, int plane, int column, const float* w, size_t half, typename V::Floats (&sum)[kColumns][kPanels]) {
  for (int t = 0; t < n_taps; t++) {
    const ptrdiff_t step = conv->step[t];
    const float* x = static_cast<const float*>(taps[t].x) + column * step + plane * rounded(conv->c_in[t]);
#pragma GCC unroll 1
    for (int k = 0; k < conv->c_in[t]; k++, x++, w += kPanels * V::kLanes) {
      one_step_at_a_time(x, w);
      typename V::Floats weights[kPanels];
#pragma GCC unroll 2
      for (int m = 0; m < kPanels; m++) weights[m] = load_of<F32<V>, kFrames>(reinterpret_cast<const char*>(w + m * V::kLanes), half);
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++) {
        const auto v = V::all(x[n * step]);
#pragma GCC unroll 2
        for (int m = 0; m < kPanels; m++) sum[n][m] = V::plus_product(weights[m], v, sum[n][m]);
      }
    }
  }
}

// One pass: sums[column][panel]. `kept`: the same place of what the phase keeps; `half`: bytes of a pass's weights of one frame.
template <class V, int kColumns, int kPanels>
void gauss_pass(const Conv* conv, const Tap* taps, Turn turn, int plane, int column, const float* w, size_t half, float* sums, float* kept) {
  using F = typename V::Floats;
  F sum[kColumns][kPanels];
  const auto for_all = [&](auto each) EK_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++)
#pragma GCC unroll 2
      for (int m = 0; m < kPanels; m++) each(sum[n][m], (n * kPanels + m) * V::kLanes);
  };
  const int n = conv->n_taps / 2;
  const float* newer = w + half / sizeof(float);
  if (turn == EK_REST) {
    for_all([&](F& s, int at) { s = V::load(kept + at); });
    gauss_taps<V, kColumns, kPanels, kOneFrame>(conv, taps, n, plane, column, newer, half, sum);
  } else {
    for_all([](F& s, int) { s = V::zero(); });
    if (turn == EK_PLAIN) {
      gauss_taps<V, kColumns, kPanels, kOneFrame>(conv, taps, conv->n_taps, plane, column, w, half, sum);
    } else {
      gauss_taps<V, kColumns, kPanels, kBothFrames>(conv, taps, n, plane, column, w, half, sum);
      for_all([&](F& s, int at) { V::store(kept + at, s), s = V::zero() - s; });
      gauss_taps<V, kColumns, kPanels, kOneFrame>(conv, taps + n, n, plane, column, w, half, sum);
      for_all([](F& s, int) { s = V::zero() - s; });
    }
  }
  for_all([&](F& s, int at) { V::store(sums + at, s); });
}

template <class V, int kPanels>
EK_INLINE void gauss_columns(const Conv* conv, const Tap* taps, Turn turn, int plane, int column, int columns, const float* w, size_t half, float* sums, float* kept) {
  constexpr int kMost = V::kLanes == 16 ? 8 : 4, kRow = kPanels * V::kLanes;
  int n = 0;
  for (; n + kMost <= columns; n += kMost) gauss_pass<V, kMost, kPanels>(conv, taps, turn, plane, column + n, w, half, sums + n * kRow, kept + n * kRow);
  for (; n < columns; n++) gauss_pass<V, 1, kPanels>(conv, taps, turn, plane, column + n, w, half, sums + n * kRow, kept + n * kRow);
}

template <class V, int kPanels>
void gauss_item(const Conv* conv, const Tap* taps, const Out* out, int column, int columns, int panel, const float* w, float* kept) {
  constexpr int kRow = kPanels * V::kLanes, kSums = kGaussColumns * kRow;
  alignas(64) float sums[kGaussPasses * kSums];
  if (!kept) kept = sums;  // nothing is kept; only for the arithmetic on pointers
  const size_t pass_weights = panel_bytes<F32<V>>(conv, 1) / sizeof(float) * kPanels, half = frame_bytes<F32<V>>(conv, 1) * kPanels;
  for (int pass = 0; pass < kGaussPasses; pass++)
    gauss_columns<V, kPanels>(conv, taps, out->turn, kGaussPlane[pass], column, columns, w + pass * pass_weights, half, sums + pass * kSums, kept + pass * kSums);
  const auto slope = V::all(conv->slope);
  for (int m = 0; m < kPanels; m++) {
    const int c = (panel + m) * V::kLanes;
    const auto gain_re = V::load(conv->gain[0] + c), bias_re = V::load(conv->bias[0] + c), gain_im = V::load(conv->gain[1] + c), bias_im = V::load(conv->bias[1] + c);
    for (int n = 0; n < columns; n++) {
      const float* at = sums + n * kRow + m * V::kLanes;
      const auto shared = V::load(at);
      write_complex<F32<V>>(out, column + n, c, affine<V>(shared - V::load(at + 2 * kSums), gain_re, bias_re, slope),
                            affine<V>(shared + V::load(at + kSums), gain_im, bias_im, slope), conv->inv_scale, 3);
    }
  }
}

template <class V>
size_t f32_conv_bytes(const ConvSpec* spec) {
  char* weights;
  if (gauss_pays<V>(spec)) return place_conv<F32<V>>(spec, nullptr, nullptr, Cut{kGaussPanels, kGaussColumns}, kGaussPasses, &weights);
  return conv_bytes<F32<V>>(spec);
}

template <class V>
void f32_pack_conv(const ConvSpec* spec, void* memory, Conv* conv) {
  if (!gauss_pays<V>(spec)) return pack_conv<F32<V>>(spec, memory, conv);
  char* w;
  place_conv<F32<V>>(spec, static_cast<char*>(memory), conv, Cut{kGaussPanels, kGaussColumns}, kGaussPasses, &w);
  conv->block |= kGaussFlag;
  const float *w_re = spec->w[0], *w_im = spec->w[1];
  const int panels = conv->c_out / V::kLanes;
  for (int panel = 0; panel < panels; panel += kGaussPanels)
    for (int pass = 0; pass < kGaussPasses; pass++)
      visit_group<F32<V>>(spec, spec->n_taps, panel, smaller(panel + kGaussPanels, panels), [&](int tap, int step, int m, size_t at) {
        fill_vector<F32<V>>(spec, tap, step, m, at, w,
                            [&](size_t i) { return pass == 0 ? w_re[i] : pass == 1 ? w_im[i] - w_re[i] : w_re[i] + w_im[i]; });
        w += kVectorBytes<F32<V>>;
      });
}

template <class V>
void f32_conv(const Conv* packed, const Tap* taps, const Out* out, int first_item, int last_item) {
  if (!(packed->block & kGaussFlag)) return conv<F32<V>>(packed, taps, out, first_item, last_item);
  const int column_blocks = blocks_of(packed->columns, kGaussColumns), panels = packed->c_out / V::kLanes;
  const char* weights = weights_of(packed);
  const size_t bytes = panel_bytes<F32<V>>(packed, kGaussPasses);
  for (int item = first_item; item < last_item; item++) {
    const int panel = item / column_blocks * kGaussPanels, column = item % column_blocks * kGaussColumns;
    const int columns = smaller(kGaussColumns, packed->columns - column);
    const auto* w = reinterpret_cast<const float*>(weights + panel * bytes);
    float* kept = out->kept ? static_cast<float*>(out->kept) + static_cast<ptrdiff_t>(item) * kGaussPasses * kGaussColumns * kGaussPanels * V::kLanes : nullptr;
    if (panels - panel >= kGaussPanels)
      gauss_item<V, kGaussPanels>(packed, taps, out, column, columns, panel, w, kept);
    else
      gauss_item<V, 1>(packed, taps, out, column, columns, panel, w, kept);
  }
}

template <class V>
constexpr Row f32_row(const char* name) {
  Row row = row_of<F32<V>>(name, EK_F32, 2, 0);
  row.conv_bytes = f32_conv_bytes<V>;
  row.pack_conv = f32_pack_conv<V>;
  row.conv = f32_conv<V>;
  return row;
}

}  // namespace
}  // namespace ek
#endif
