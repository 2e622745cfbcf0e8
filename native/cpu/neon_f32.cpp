// f32 for every Arm core of 64 bits.
//
// Convolution: 8 complex channels by 4 columns stay in registers (16 sums). Four inputs of a column come with two loads and are
// multiplied by lane, so nothing is ever broadcast: 128 fmla for 24 loads, and weights pass by once for 4 columns.
//
// Gauss: re = P - xi (Wr + Wi), im = P + xr (Wi - Wr), P = Wr (xr + xi). Three passes over 8 channels by 8 columns (16 sums), since
// one pass with three kinds of sums would leave room for a block of 2 columns only. The second and third start from P.
#include "neon_common.h"

namespace ek {
namespace {

constexpr int kPanel = 8;
constexpr int kColumns = 4, kGaussColumns = 8;

enum Variant { kFourMult, kFourMultWithSum, kThreeMult };  // what is computed, and whether re + im is written as a third plane

// A layer of few columns reads its weights too seldom for three passes to gain: they are half as long again.
Variant variant_of(const ConvSpec* spec) {
  if (spec->algorithm != EK_GAUSS) return kFourMult;
  return spec->columns < kGaussColumns ? kFourMultWithSum : kThreeMult;
}

// Four mult, packed: [panel][tap][input channel][8 real, 8 imaginary]. Three: [panel][pass][tap][input channel][8].
size_t place_conv(const ConvSpec* spec, char* memory, Conv* conv) {
  Carver carver{memory, 0};
  const Variant variant = variant_of(spec);
  begin_conv(spec, carver, conv, kPanel, variant == kThreeMult ? kGaussColumns : kColumns, 4);
  const int panels = rounded(spec->c_out, kPanel) / kPanel;
  size_t inputs = 0;
  for (int t = 0; t < spec->n_taps; t++) inputs += rounded(spec->sources[t].c_in, 4);
  float* packed = take<float>(carver, panels * inputs * kPanel * (variant == kThreeMult ? 3 : 2));
  if (!memory) return carver.used;
  conv->variant = variant;
  conv->weights = packed;
  for (int panel = 0; panel < panels; panel++)
    for (int pass = 0; pass < (variant == kThreeMult ? 3 : 1); pass++) {
      size_t at = 0;
      for (int t = 0; t < spec->n_taps; t++) {
        const int c_in = spec->sources[t].c_in;
        for (int c = 0; c < conv->c_in[t]; c++) {
          float wr[kPanel], wi[kPanel];
          for (int i = 0; i < kPanel; i++) {
            wr[i] = weight_at(spec->w[0], at, spec->c_out, c_in, panel * kPanel + i, c);
            wi[i] = weight_at(spec->w[1], at, spec->c_out, c_in, panel * kPanel + i, c);
          }
          if (variant == kThreeMult)
            for (int i = 0; i < kPanel; i++) *packed++ = pass == 0 ? wr[i] : pass == 1 ? wi[i] - wr[i] : -(wr[i] + wi[i]);
          else {
            for (int i = 0; i < kPanel; i++) *packed++ = wr[i];
            for (int i = 0; i < kPanel; i++) *packed++ = wi[i];
          }
        }
        at += static_cast<size_t>(spec->c_out) * c_in;
      }
    }
  return carver.used;
}

size_t conv_bytes(const ConvSpec* spec) { return place_conv(spec, nullptr, nullptr); }
void pack_conv(const ConvSpec* spec, void* memory, Conv* conv) { place_conv(spec, static_cast<char*>(memory), conv); }

// Input channel `kLane` of the four in xr, xi.
template <int kLane, int N>
EK_INLINE void complex_step(f32x4 (&re)[2][N], f32x4 (&im)[2][N], const float* w, const f32x4 (&xr)[N], const f32x4 (&xi)[N]) {
  const f32x4 wr[2] = {vld1q_f32(w), vld1q_f32(w + 4)}, wi[2] = {vld1q_f32(w + 8), vld1q_f32(w + 12)};
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) {
      add_product<kLane>(re[m][n], wr[m], xr[n]);
      add_product<kLane>(im[m][n], wr[m], xi[n]);
    }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) {
      subtract_product<kLane>(re[m][n], wi[m], xi[n]);
      add_product<kLane>(im[m][n], wi[m], xr[n]);
    }
}

template <int N>
EK_APART void four_mult(const Conv* conv, const Tap* taps, const Out* out, const float* w, int column, int channel, bool third) {
  f32x4 re[2][N], im[2][N];
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) re[m][n] = im[m][n] = vdupq_n_f32(0.0f);
  for (int t = 0; t < conv->n_taps; t++) {
    const int c_in = conv->c_in[t], plane = rounded(c_in);
    const ptrdiff_t step = conv->step[t];
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
    for (int c = 0; c < c_in; c += 4, x += 4, w += 8 * kPanel) {
      f32x4 xr[N], xi[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) xr[n] = vld1q_f32(x + n * step), xi[n] = vld1q_f32(x + plane + n * step);
      complex_step<0, N>(re, im, w, xr, xi);
      hold_loads();
      complex_step<1, N>(re, im, w + 2 * kPanel, xr, xi);
      hold_loads();
      complex_step<2, N>(re, im, w + 4 * kPanel, xr, xi);
      hold_loads();
      complex_step<3, N>(re, im, w + 6 * kPanel, xr, xi);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) finish<FloatFrame>(conv, out, column + n, channel + 4 * m, re[m][n], im[m][n], third);
}

template <int kLane, int N>
EK_INLINE void real_step(f32x4 (&sum)[2][N], const float* w, const f32x4 (&x)[N]) {
  const f32x4 v[2] = {vld1q_f32(w), vld1q_f32(w + 4)};
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) add_product<kLane>(sum[m][n], v[m], x[n]);
}

// One of Gauss's products, over plane 0 (real), 1 (imaginary) or 2 (their sum) of the input. to = from + product.
template <int N>
EK_APART const float* gauss_pass(const Conv* conv, const Tap* taps, const float* w, int column, int plane, const f32x4* from, f32x4* to) {
  f32x4 sum[2][N];
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) sum[m][n] = from ? from[2 * n + m] : vdupq_n_f32(0.0f);
  for (int t = 0; t < conv->n_taps; t++) {
    const int c_in = conv->c_in[t];
    const ptrdiff_t step = conv->step[t];
    const float* x = static_cast<const float*>(taps[t].x) + column * step + plane * rounded(c_in);
    for (int c = 0; c < c_in; c += 4, x += 4, w += 4 * kPanel) {
      f32x4 v[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) v[n] = vld1q_f32(x + n * step);
      real_step<0, N>(sum, w, v);
      hold_loads();
      real_step<1, N>(sum, w + kPanel, v);
      hold_loads();
      real_step<2, N>(sum, w + 2 * kPanel, v);
      hold_loads();
      real_step<3, N>(sum, w + 3 * kPanel, v);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) to[2 * n + m] = sum[m][n];
  return w;
}

template <int N>
void three_mult(const Conv* conv, const Tap* taps, const Out* out, const float* w, int column, int channel) {
  f32x4 common[2 * N], re[2 * N], im[2 * N];
  w = gauss_pass<N>(conv, taps, w, column, 2, nullptr, common);
  w = gauss_pass<N>(conv, taps, w, column, 0, common, im);
  gauss_pass<N>(conv, taps, w, column, 1, common, re);
  for (int n = 0; n < N; n++)
    for (int m = 0; m < 2; m++) finish<FloatFrame>(conv, out, column + n, channel + 4 * m, re[2 * n + m], im[2 * n + m], true);
}

void conv(const Conv* conv, const Tap* taps, const Out* out, int first_item, int last_item) {
  const bool gauss = conv->variant == kThreeMult, third = conv->variant != kFourMult;
  const int blocks = rounded(conv->columns, conv->block) / conv->block, panels = conv->items / blocks;
  size_t inputs = 0;
  for (int t = 0; t < conv->n_taps; t++) inputs += conv->c_in[t];
  const size_t panel_floats = inputs * kPanel * (gauss ? 3 : 2);
  for (int item = first_item; item < last_item; item++) {
    const int panel = item / blocks, channel = panel * kPanel, column = item % blocks * conv->block;
    const int left = conv->columns - column, n = left < conv->block ? left : conv->block;
    const float* w = static_cast<const float*>(conv->weights) + panel * panel_floats;
    if (gauss) switch (n) {
        case 1: three_mult<1>(conv, taps, out, w, column, channel); break;
        case 2: three_mult<2>(conv, taps, out, w, column, channel); break;
        case 3: three_mult<3>(conv, taps, out, w, column, channel); break;
        case 4: three_mult<4>(conv, taps, out, w, column, channel); break;
        case 5: three_mult<5>(conv, taps, out, w, column, channel); break;
        case 6: three_mult<6>(conv, taps, out, w, column, channel); break;
        case 7: three_mult<7>(conv, taps, out, w, column, channel); break;
        default: three_mult<8>(conv, taps, out, w, column, channel);
      }
    else switch (n) {
        case 1: four_mult<1>(conv, taps, out, w, column, channel, third); break;
        case 2: four_mult<2>(conv, taps, out, w, column, channel, third); break;
        case 3: four_mult<3>(conv, taps, out, w, column, channel, third); break;
        default: four_mult<4>(conv, taps, out, w, column, channel, third);
      }
    if (panel == panels - 1)
      for (int i = 0; i < n; i++) write_zeros<FloatFrame>(out, column + i, channel + kPanel, conv->c_out, third);
  }
}

// Packed: [item][input, then state][gate][unit].
size_t place_cell(const CellSpec* spec, char* memory, Cell* cell) {
  Carver carver{memory, 0};
  begin_cell(spec, carver, cell, 4);
  const int gates = gates_of(spec->kind), items = rounded(spec->hidden, kUnits) / kUnits, n_x = sum_of(spec->segment, spec->n_segments);
  size_t inputs = rounded(spec->hidden, 4);
  for (int s = 0; s < spec->n_segments; s++) inputs += rounded(spec->segment[s], 4);
  float* packed = take<float>(carver, items * inputs * gates * kUnits);
  if (!memory) return carver.used;
  cell->weights = packed;
  for (int item = 0; item < items; item++) {
    const auto pack = [&](const float* w, int stride, int from, int n) {
      for (int i = 0; i < rounded(n, 4); i++)
        for (int g = 0; g < gates; g++)
          for (int j = 0; j < kUnits; j++) {
            const int unit = item * kUnits + j;
            *packed++ = unit < spec->hidden && i < n ? w[static_cast<size_t>(g * spec->hidden + unit) * stride + from + i] : 0.0f;
          }
    };
    int from = 0;
    for (int s = 0; s < spec->n_segments; s++) {
      pack(spec->w_x, n_x, from, spec->segment[s]);
      from += spec->segment[s];
    }
    pack(spec->w_h, spec->hidden, 0, spec->hidden);
  }
  return carver.used;
}

size_t cell_bytes(const CellSpec* spec) { return place_cell(spec, nullptr, nullptr); }
void pack_cell(const CellSpec* spec, void* memory, Cell* cell) { place_cell(spec, static_cast<char*>(memory), cell); }

template <int kLane, int kGates>
EK_INLINE void gate_step(f32x4 (&sum)[2][kGates][2], const float* w, const f32x4 (&x)[2]) {
#pragma GCC unroll 4
  for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) {
      const f32x4 v = vld1q_f32(w + g * kUnits + 4 * m);
#pragma GCC unroll 2
      for (int k = 0; k < 2; k++) add_product<kLane>(sum[k][g][m], v, x[k]);
    }
}

// Both inputs times the weights of one item's gates; x[k][s] are n_segments pieces of segment[s] values. Returns where the weights end.
template <int kGates>
EK_APART const float* gate_sums(const void* const* const (&x)[2], const int* segment, int n_segments, const float* w, const float* bias,
                       float (&to)[2][4][kUnits]) {
  f32x4 sum[2][kGates][2];
#pragma GCC unroll 4
  for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
    for (int m = 0; m < 2; m++) sum[0][g][m] = sum[1][g][m] = vld1q_f32(bias + g * kUnits + 4 * m);
  for (int s = 0; s < n_segments; s++) {
    const float *x0 = static_cast<const float*>(x[0][s]), *x1 = static_cast<const float*>(x[1][s]);
    for (int i = 0; i < segment[s]; i += 4, w += 4 * kGates * kUnits) {
      const f32x4 v[2] = {vld1q_f32(x0 + i), vld1q_f32(x1 + i)};
      gate_step<0, kGates>(sum, w, v);
      hold_loads();
      gate_step<1, kGates>(sum, w + kGates * kUnits, v);
      hold_loads();
      gate_step<2, kGates>(sum, w + 2 * kGates * kUnits, v);
      hold_loads();
      gate_step<3, kGates>(sum, w + 3 * kGates * kUnits, v);
    }
  }
#pragma GCC unroll 2
  for (int k = 0; k < 2; k++)
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) vst1q_f32(&to[k][g][4 * m], sum[k][g][m]);
  return w;
}

template <int kGates>
void cell_items(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  const void* const state[2] = {run->h_old[0], run->h_old[1]};
  const void* const* const h[2] = {&state[0], &state[1]};
  const void* const* const x[2] = {run->x[0], run->x[1]};
  const int* hidden = cell->segment + cell->n_segments;
  const size_t inputs = sum_of(cell->segment, cell->n_segments + 1);
  for (int item = first_item; item < last_item; item++) {
    GateSums sums;
    const float* w = static_cast<const float*>(cell->weights) + item * inputs * kGates * kUnits;
    const int at = item * kGates * kUnits;
    w = gate_sums<kGates>(x, cell->segment, cell->n_segments, w, cell->bias_x + at, sums.from_x);
    gate_sums<kGates>(h, hidden, 1, w, cell->bias_h + at, sums.from_h);
    pointwise<FloatFrame>(cell, run, item, sums);
  }
}

void cell(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  if (cell->kind == EK_LSTM) cell_items<4>(cell, run, first_item, last_item);
  else cell_items<3>(cell, run, first_item, last_item);
}

// Packed: [16 rows][input][row].
size_t place_dense(const DenseSpec* spec, char* memory, Dense* dense) {
  Carver carver{memory, 0};
  const int n = rounded(spec->n, 4);
  float* bias = take<float>(carver, spec->rows);
  copy_padded(spec->bias, spec->rows, bias, spec->rows);
  float* packed = take<float>(carver, static_cast<size_t>(spec->rows) * n);
  if (!memory) return carver.used;
  *dense = Dense{spec->rows, n, spec->rows / kLanes, packed, nullptr, bias};
  for (int row = 0; row < spec->rows; row += kLanes)
    for (int i = 0; i < n; i++)
      for (int j = 0; j < kLanes; j++) *packed++ = i < spec->n ? spec->w[static_cast<size_t>(row + j) * spec->n + i] : 0.0f;
  return carver.used;
}

size_t dense_bytes(const DenseSpec* spec) { return place_dense(spec, nullptr, nullptr); }
void pack_dense(const DenseSpec* spec, void* memory, Dense* dense) { place_dense(spec, static_cast<char*>(memory), dense); }

template <int kLane>
EK_INLINE void dense_step(f32x4 (&sum)[4], const float* w, f32x4 x) {
#pragma GCC unroll 4
  for (int m = 0; m < 4; m++) add_product<kLane>(sum[m], vld1q_f32(w + 4 * m), x);
}

void dense(const Dense* dense, const void* vector, float* y, int first_item, int last_item) {
  const float* x = static_cast<const float*>(vector);
  for (int item = first_item; item < last_item; item++) {
    const float* w = static_cast<const float*>(dense->weights) + static_cast<size_t>(item) * dense->n * kLanes;
    f32x4 even[4], odd[4];  // two sums a row: four alone would wait for one another
    for (int m = 0; m < 4; m++) even[m] = vld1q_f32(dense->bias + item * kLanes + 4 * m), odd[m] = vdupq_n_f32(0.0f);
    for (int i = 0; i < dense->n; i += 4, w += 4 * kLanes) {
      const f32x4 v = vld1q_f32(x + i);
      dense_step<0>(even, w, v);
      dense_step<1>(odd, w + kLanes, v);
      dense_step<2>(even, w + 2 * kLanes, v);
      dense_step<3>(odd, w + 3 * kLanes, v);
    }
    for (int m = 0; m < 4; m++) vst1q_f32(y + item * kLanes + 4 * m, vaddq_f32(even[m], odd[m]));
  }
}

}  // namespace

extern const Row neon_f32 = {"neon_f32", EK_F32, 2, 0, sizeof(float),
                             conv_bytes, pack_conv, conv, cell_bytes, pack_cell, cell,
                             dense_bytes, pack_dense, dense, store<FloatFrame>, store_row<FloatFrame>, nullptr, first<FloatFrame, false>, last};

}  // namespace ek
