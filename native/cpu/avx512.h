// What the three AVX-512 rows share. A row brings `Math`, which says what one step of its format is.
//
// In every format one step of an inner loop takes four bytes of an input plane (one f32, two bf16, four int8), spread over 16 lanes, against
// 64 bytes of weights for 16 output channels. So packed weights look alike, and one loop in bytes serves all formats:
//
//     [group of panels][tap][step][panel of the group][real, imaginary] of 64 bytes        a panel: 16 output channels
//
// A block of sums stays in registers: `panels` x `columns` complex numbers of 16 channels, at most 16 registers.
// Everything is in an unnamed namespace: the linker must not give this code to a file for another instruction set.
#ifndef EK_CPU_AVX512_H
#define EK_CPU_AVX512_H

// GCC 12 warns of its own intrinsics, which name an undefined vector on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "pack.h"

#define EK_INLINE __attribute__((always_inline)) inline

namespace ek {
namespace {

constexpr int kStepBytes = 4;     // of one input plane
constexpr int kVectorBytes = 64;
constexpr int kMostColumns = 8;   // of a block of one panel
constexpr int kMostPanels = 2;    // then of 4 columns

// ---- exp, sigmoid, tanh -------------------------------------------------------------------------------------------------------------

// e^x for |x| <= 80, relative error 2e-7: x = n ln 2 + f, a polynomial of degree 6 in f (Cephes expf).
EK_INLINE __m512 exp16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// e^-x with x kept in +-limit, where sigmoid and tanh are 0 and 1 to f32 anyway. A NaN stays one.
EK_INLINE __m512 exp_minus(__m512 x, float limit) {
  const __m512 kept = _mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(_mm512_set1_ps(limit), x));  // min, max return their second on NaN
  return exp16(_mm512_sub_ps(_mm512_setzero_ps(), kept));
}

EK_INLINE __m512 one_plus(__m512 x) { return _mm512_add_ps(_mm512_set1_ps(1.0f), x); }
EK_INLINE __m512 one_minus(__m512 x) { return _mm512_sub_ps(_mm512_set1_ps(1.0f), x); }
EK_INLINE __m512 sigmoid16(__m512 x) { return _mm512_div_ps(_mm512_set1_ps(1.0f), one_plus(exp_minus(x, 30.0f))); }
EK_INLINE __m512 tanh16(__m512 x) {
  const __m512 e = exp_minus(_mm512_add_ps(x, x), 30.0f);
  return _mm512_div_ps(one_minus(e), one_plus(e));
}

// ---- convolution --------------------------------------------------------------------------------------------------------------------

EK_INLINE __m512 affine(__m512 sum, const float* gain, const float* bias, __m512 slope) {
  const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(gain), sum), _mm512_loadu_ps(bias));
  return _mm512_mask_mul_ps(y, _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NGT_UQ), y, slope);
}

// 16 complex channels of one column to where `out` wants them.
template <class Math>
EK_INLINE void write_complex(const Out* out, int column, int c, __m512 re, __m512 im, __m512 inv_scale, int planes) {
  if (out->frame) {
    char* row = static_cast<char*>(out->frame) + (static_cast<ptrdiff_t>(column) * out->frame_step + c) * Math::kElementBytes;
    Math::store_complex(row, static_cast<ptrdiff_t>(out->channels) * Math::kElementBytes, re, im, inv_scale, planes);
  }
  if (out->floats) {
    float* row = out->floats + static_cast<ptrdiff_t>(column) * out->floats_step + c;
    _mm512_storeu_ps(row, re);
    _mm512_storeu_ps(row + out->channels, im);
  }
}

template <class Math>
EK_INLINE int steps_of(const Conv* conv, int tap) {
  return conv->c_in[tap] * Math::kElementBytes / kStepBytes;
}

// One block: every tap, every step, then the epilogue.
template <class Math, int kColumns, int kPanels>
void block(const Conv* conv, const Tap* taps, const Out* out, int column, int panel, const char* w) {
  using Sum = typename Math::Sum;
  Sum re[kPanels][kColumns], im[kPanels][kColumns];
#pragma GCC unroll 8
  for (int m = 0; m < kPanels; m++) {
    const Sum start = Math::start(conv, panel + m);
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) re[m][n] = im[m][n] = start;
  }
  for (int t = 0; t < conv->n_taps; t++) {
    const ptrdiff_t step = static_cast<ptrdiff_t>(conv->step[t]) * Math::kElementBytes;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(rounded(conv->c_in[t])) * Math::kElementBytes;
    const char* x = static_cast<const char*>(taps[t].x) + column * step;
    const int steps = steps_of<Math>(conv, t);
#pragma GCC unroll 2
    for (int k = 0; k < steps; k++, x += kStepBytes, w += kPanels * 2 * kVectorBytes) {
      __m512i w_re[kPanels], w_im[kPanels];
#pragma GCC unroll 8
      for (int m = 0; m < kPanels; m++) {
        w_re[m] = _mm512_load_si512(w + m * 2 * kVectorBytes);
        w_im[m] = _mm512_load_si512(w + m * 2 * kVectorBytes + kVectorBytes);
      }
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++) {
        const typename Math::Input input = Math::input(x + n * step, plane);
#pragma GCC unroll 8
        for (int m = 0; m < kPanels; m++) Math::multiply(re[m][n], im[m][n], w_re[m], w_im[m], input);
      }
    }
  }
  const __m512 slope = _mm512_set1_ps(conv->slope), inv_scale = _mm512_set1_ps(conv->inv_scale);
  const int planes = Math::planes(conv->variant);
#pragma GCC unroll 8
  for (int m = 0; m < kPanels; m++)
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) {
      const int c = (panel + m) * kLanes;
      const __m512 y_re = affine(Math::to_float(re[m][n]), conv->gain[0] + c, conv->bias[0] + c, slope);
      const __m512 y_im = affine(Math::to_float(im[m][n]), conv->gain[1] + c, conv->bias[1] + c, slope);
      write_complex<Math>(out, column + n, c, y_re, y_im, inv_scale, planes);
    }
}

using Block = void (*)(const Conv*, const Tap*, const Out*, int column, int panel, const char* w);

// What a spec is cut into. Few columns: two panels at once, so that there are enough sums to hide the latency of one.
struct Cut {
  int panels, columns;
};
EK_INLINE Cut cut_of(int columns) { return columns > 4 ? Cut{1, 8} : Cut{2, 4}; }
EK_INLINE int blocks_of(int n, int size) { return (n + size - 1) / size; }
EK_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Everything of a packed layer but its weights: `corrections` are what int8 sums start at, in front of the weights.
template <class Math>
Carver place_conv(const ConvSpec* spec, char* memory, Conv* conv, Cut cut, size_t bytes_per_step, char** weights) {
  Carver carver{memory, 0};
  const int c_out = rounded(spec->c_out);
  Conv placed{};
  placed.c_out = c_out;
  placed.columns = spec->columns;
  placed.n_taps = spec->n_taps;
  placed.block = cut.columns | cut.panels << 8;
  placed.variant = spec->algorithm;
  placed.items = blocks_of(c_out / kLanes, cut.panels) * blocks_of(spec->columns, cut.columns);
  placed.slope = spec->slope;
  placed.inv_scale = spec->inv_scale;
  size_t steps = 0;
  for (int t = 0; t < spec->n_taps; t++) {
    placed.c_in[t] = rounded(spec->sources[t].c_in, kStepBytes / Math::kElementBytes);
    placed.step[t] = spec->sources[t].step;
    steps += steps_of<Math>(&placed, t);
  }
  const size_t corrections = static_cast<size_t>(c_out) * sizeof(int32_t);
  char* packed = take<char>(carver, corrections + steps * bytes_per_step * (c_out / kLanes));
  placed.weights = packed;
  *weights = packed ? packed + corrections : nullptr;
  for (int i = 0; i < 2; i++) {
    float* gain = take<float>(carver, c_out);
    float* bias = take<float>(carver, c_out);
    copy_padded(spec->gain[i], spec->c_out, gain, c_out);
    copy_padded(spec->bias[i], spec->c_out, bias, c_out);
    placed.gain[i] = gain;
    placed.bias[i] = bias;
  }
  if (memory) *conv = placed;
  return carver;
}

// Calls visit(tap, step, panel, first weight's place) in the order of packed weights: [group][tap][step][panel of the group].
template <class Math, class Visit>
EK_INLINE void visit_weights(const ConvSpec* spec, const Conv* conv, int group, Visit visit) {
  for (int panel = 0; panel < conv->c_out / kLanes; panel += group) {
    size_t at = 0;
    for (int t = 0; t < spec->n_taps; t++) {
      for (int k = 0; k < steps_of<Math>(conv, t); k++)
        for (int m = panel; m < smaller(panel + group, conv->c_out / kLanes); m++) visit(t, k, m, at);
      at += static_cast<size_t>(spec->c_out) * spec->sources[t].c_in;
    }
  }
}

// The 64 bytes of one panel and one step: 16 channels x the inputs of the step; zeros beyond the model's own.
template <class Math, class Get>
EK_INLINE void fill_vector(const ConvSpec* spec, int tap, int step, int panel, size_t at, char* to, Get get) {
  constexpr int kInputs = kStepBytes / Math::kElementBytes;
  auto* element = reinterpret_cast<typename Math::Element*>(to);
  const int c_in = spec->sources[tap].c_in;
  for (int lane = 0; lane < kLanes; lane++)
    for (int e = 0; e < kInputs; e++) {
      const int o = panel * kLanes + lane, c = step * kInputs + e;
      *element++ = o < spec->c_out && c < c_in ? get(at + static_cast<size_t>(o) * c_in + c) : typename Math::Element{0};
    }
}

template <class Math>
size_t conv_bytes(const ConvSpec* spec) {
  char* weights;
  return place_conv<Math>(spec, nullptr, nullptr, cut_of(spec->columns), 2 * kVectorBytes, &weights).used;
}

template <class Math>
void pack_conv(const ConvSpec* spec, void* memory, Conv* conv) {
  char* w;
  const Cut cut = cut_of(spec->columns);
  place_conv<Math>(spec, static_cast<char*>(memory), conv, cut, 2 * kVectorBytes, &w);
  Math::pack_corrections(spec, static_cast<int32_t*>(const_cast<void*>(conv->weights)), conv->c_out);
  visit_weights<Math>(spec, conv, cut.panels, [&](int tap, int step, int panel, size_t at) {
    for (int part = 0; part < 2; part++, w += kVectorBytes)
      fill_vector<Math>(spec, tap, step, panel, at, w, [&](size_t i) { return Math::weight(spec->w[part], spec->q[part], i); });
  });
}

template <class Math>
size_t panel_bytes(const Conv* conv, size_t bytes_per_step) {
  size_t steps = 0;
  for (int t = 0; t < conv->n_taps; t++) steps += steps_of<Math>(conv, t);
  return steps * bytes_per_step;
}

// Items count column blocks first, so that neighbours share weights.
template <class Math>
void conv(const Conv* conv, const Tap* taps, const Out* out, int first_item, int last_item) {
  static constexpr Block kBlocks[kMostPanels][kMostColumns] = {
      {block<Math, 1, 1>, block<Math, 2, 1>, block<Math, 3, 1>, block<Math, 4, 1>, block<Math, 5, 1>, block<Math, 6, 1>, block<Math, 7, 1>,
       block<Math, 8, 1>},
      {block<Math, 1, 2>, block<Math, 2, 2>, block<Math, 3, 2>, block<Math, 4, 2>}};
  const int columns = conv->block & 0xff, panels = conv->block >> 8, column_blocks = blocks_of(conv->columns, columns);
  const char* weights = static_cast<const char*>(conv->weights) + static_cast<size_t>(conv->c_out) * sizeof(int32_t);
  const size_t bytes = panel_bytes<Math>(conv, 2 * kVectorBytes);
  for (int item = first_item; item < last_item; item++) {
    const int panel = item / column_blocks * panels, column = item % column_blocks * columns;
    const int m = smaller(panels, conv->c_out / kLanes - panel), n = smaller(columns, conv->columns - column);
    kBlocks[m - 1][n - 1](conv, taps, out, column, panel, weights + panel * bytes);
  }
}

// ---- recurrent cells ----------------------------------------------------------------------------------------------------------------

// Weights [block of 16 hidden units][step of x, then of h][gate] of 64 bytes; an item is such a block, on both inputs.
// In front of them: what int8 sums of x and of h start at, [2][gates][hidden].
EK_INLINE int gates_of(CellKind kind) { return kind == EK_LSTM ? 4 : 3; }

template <class Math>
EK_INLINE int steps_of_length(int n) {
  return (n * Math::kElementBytes + kStepBytes - 1) / kStepBytes;
}

template <class Math>
size_t place_cell(const CellSpec* spec, char* memory, Cell* cell) {
  constexpr int kInputs = kStepBytes / Math::kElementBytes;
  using Element = typename Math::Element;
  Carver carver{memory, 0};
  const int gates = gates_of(spec->kind), hidden = rounded(spec->hidden), n_x = sum_of(spec->segment, spec->n_segments);
  size_t steps = steps_of_length<Math>(spec->hidden);
  for (int s = 0; s < spec->n_segments; s++) steps += steps_of_length<Math>(spec->segment[s]);
  const size_t starts = static_cast<size_t>(2) * gates * hidden;
  char* packed = take<char>(carver, starts * sizeof(int32_t) + steps * gates * (hidden / kLanes) * kVectorBytes);
  int* segment = take<int>(carver, spec->n_segments + 1);
  const float* from[4] = {spec->scale_x, spec->scale_h, spec->bias_x, spec->bias_h};
  float* piece[4];
  for (float*& p : piece) p = take<float>(carver, static_cast<size_t>(gates) * hidden);
  if (!memory) return carver.used;

  for (int i = 0; i < 4; i++)
    for (int g = 0; g < gates; g++)
      copy_padded(from[i] ? from[i] + static_cast<ptrdiff_t>(g) * spec->hidden : nullptr, spec->hidden, piece[i] + g * hidden, hidden);
  for (int s = 0; s < spec->n_segments; s++) segment[s] = steps_of_length<Math>(spec->segment[s]) * kInputs;
  segment[spec->n_segments] = steps_of_length<Math>(spec->hidden) * kInputs;

  auto* start = reinterpret_cast<int32_t*>(packed);
  for (int part = 0; part < 2; part++)
    for (int g = 0; g < gates; g++)
      for (int u = 0; u < hidden; u++) {
        const int n = part ? spec->hidden : n_x;
        const int8_t* q = part ? spec->q_h : spec->q_x;
        *start++ = u < spec->hidden && q ? Math::start_of(q + (static_cast<size_t>(g) * spec->hidden + u) * n, n) : 0;
      }
  auto* w = reinterpret_cast<Element*>(start);
  for (int u0 = 0; u0 < hidden; u0 += kLanes) {
    int begin = 0;
    for (int s = 0; s <= spec->n_segments; s++) {
      const bool of_h = s == spec->n_segments;
      const int length = of_h ? spec->hidden : spec->segment[s], n = of_h ? spec->hidden : n_x;
      for (int i = 0; i < segment[s]; i += kInputs)
        for (int g = 0; g < gates; g++)
          for (int lane = 0; lane < kLanes; lane++)
            for (int e = 0; e < kInputs; e++) {
              const int u = u0 + lane;
              const size_t at = (static_cast<size_t>(g) * spec->hidden + u) * n + (of_h ? 0 : begin) + i + e;
              *w++ = u < spec->hidden && i + e < length ? Math::weight(of_h ? spec->w_h : spec->w_x, of_h ? spec->q_h : spec->q_x, at) : Element{0};
            }
      begin += length;
    }
  }
  *cell = Cell{};
  cell->kind = spec->kind;
  cell->hidden = hidden;
  cell->n_segments = spec->n_segments;
  cell->segment = segment;
  cell->items = hidden / kLanes;
  cell->weights = packed;
  cell->scale_x = piece[0], cell->scale_h = piece[1], cell->bias_x = piece[2], cell->bias_h = piece[3];
  return carver.used;
}

template <class Math>
size_t cell_bytes(const CellSpec* spec) {
  return place_cell<Math>(spec, nullptr, nullptr);
}

template <class Math>
void pack_cell(const CellSpec* spec, void* memory, Cell* cell) {
  place_cell<Math>(spec, static_cast<char*>(memory), cell);
}

// Adds weights x vector of both inputs; even and odd steps into sums of their own, for there are too few to hide the latency otherwise.
template <class Math, int kGates>
EK_INLINE void multiply_both(const char*& w, const char* x0, const char* x1, int steps, typename Math::Sum (&sum)[2][2][kGates]) {
  int k = 0;
  for (; k + 1 < steps; k += 2, w += 2 * kGates * kVectorBytes) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++) {
      const __m512i a = Math::spread(x0 + (k + odd) * kStepBytes), b = Math::spread(x1 + (k + odd) * kStepBytes);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; g++) {
        const __m512i v = _mm512_load_si512(w + (odd * kGates + g) * kVectorBytes);
        sum[odd][0][g] = Math::dot(sum[odd][0][g], v, a);
        sum[odd][1][g] = Math::dot(sum[odd][1][g], v, b);
      }
    }
  }
  if (k < steps) {
    const __m512i a = Math::spread(x0 + k * kStepBytes), b = Math::spread(x1 + k * kStepBytes);
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++, w += kVectorBytes) {
      const __m512i v = _mm512_load_si512(w);
      sum[0][0][g] = Math::dot(sum[0][0][g], v, a);
      sum[0][1][g] = Math::dot(sum[0][1][g], v, b);
    }
  }
}

template <class Math, int kGates>
EK_INLINE void start_sums(typename Math::Sum (&sum)[2][2][kGates], const int32_t* start, int hidden) {
#pragma GCC unroll 4
  for (int g = 0; g < kGates; g++) {
    sum[0][0][g] = sum[0][1][g] = Math::start_at(start + g * hidden);
    sum[1][0][g] = sum[1][1][g] = Math::zero();
  }
}

// sum * scale + bias of a gate's 16 rows, as floats.
template <class Math, int kGates>
EK_INLINE __m512 finish(const typename Math::Sum (&sum)[2][2][kGates], int k, int g, const float* scale, const float* bias) {
  return Math::scaled(Math::add(sum[0][k][g], sum[1][k][g]), scale, bias);
}

template <class Math, int kGates>
EK_INLINE void cell_item(const Cell* cell, const CellRun* run, int item) {
  const int hidden = cell->hidden, u = item * kLanes;
  const auto* starts = static_cast<const int32_t*>(cell->weights);
  size_t steps = 0;
  for (int s = 0; s <= cell->n_segments; s++) steps += cell->segment[s] * Math::kElementBytes / kStepBytes;
  const char* w = reinterpret_cast<const char*>(starts + 2 * kGates * hidden) + static_cast<size_t>(item) * steps * kGates * kVectorBytes;

  typename Math::Sum sum[2][2][kGates];
  start_sums<Math, kGates>(sum, starts + u, hidden);
  for (int s = 0; s < cell->n_segments; s++)
    multiply_both<Math, kGates>(w, static_cast<const char*>(run->x[0][s]), static_cast<const char*>(run->x[1][s]),
                                cell->segment[s] * Math::kElementBytes / kStepBytes, sum);
  __m512 x[2][kGates];
  for (int k = 0; k < 2; k++)
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++) x[k][g] = finish<Math, kGates>(sum, k, g, cell->scale_x + g * hidden + u, cell->bias_x + g * hidden + u);

  start_sums<Math, kGates>(sum, starts + kGates * hidden + u, hidden);
  multiply_both<Math, kGates>(w, static_cast<const char*>(run->h_old[0]), static_cast<const char*>(run->h_old[1]),
                              cell->segment[cell->n_segments] * Math::kElementBytes / kStepBytes, sum);
  for (int k = 0; k < 2; k++) {
    __m512 from_h[kGates];
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++) from_h[g] = finish<Math, kGates>(sum, k, g, cell->scale_h + g * hidden + u, cell->bias_h + g * hidden + u);
    __m512 h;
    if constexpr (kGates == 4) {
      // c' = c / (1 + e_f) + (1 - e_g) / ((1 + e_i)(1 + e_g)),  h = (1 - e_c) / ((1 + e_o)(1 + e_c)): three divisions, not five.
      const __m512 e_i = one_plus(exp_minus(_mm512_add_ps(x[k][0], from_h[0]), 30.0f)), g2 = _mm512_add_ps(x[k][2], from_h[2]);
      const __m512 e_f = one_plus(exp_minus(_mm512_add_ps(x[k][1], from_h[1]), 30.0f)), e_g = exp_minus(_mm512_add_ps(g2, g2), 30.0f);
      const __m512 e_o = one_plus(exp_minus(_mm512_add_ps(x[k][3], from_h[3]), 30.0f));
      const __m512 c = _mm512_add_ps(_mm512_div_ps(_mm512_loadu_ps(run->c[k] + u), e_f),
                                     _mm512_div_ps(one_minus(e_g), _mm512_mul_ps(e_i, one_plus(e_g))));
      _mm512_storeu_ps(run->c[k] + u, c);
      const __m512 e_c = exp_minus(_mm512_add_ps(c, c), 30.0f);
      h = _mm512_div_ps(one_minus(e_c), _mm512_mul_ps(e_o, one_plus(e_c)));
    } else {
      const __m512 r = sigmoid16(_mm512_add_ps(x[k][0], from_h[0])), z = sigmoid16(_mm512_add_ps(x[k][1], from_h[1]));
      const __m512 n = tanh16(_mm512_fmadd_ps(r, from_h[2], x[k][2]));
      h = _mm512_fmadd_ps(z, _mm512_sub_ps(_mm512_loadu_ps(run->h_f32_old[k] + u), n), n);
    }
    _mm512_storeu_ps(run->h_f32[k] + u, h);
    Math::store16(static_cast<char*>(run->h_new[k]) + u * Math::kElementBytes, h, _mm512_set1_ps(127.0f));
  }
}

template <class Math>
void cell(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  for (int item = first_item; item < last_item; item++) {
    if (cell->kind == EK_LSTM)
      cell_item<Math, 4>(cell, run, item);
    else
      cell_item<Math, 3>(cell, run, item);
  }
}

// ---- dense --------------------------------------------------------------------------------------------------------------------------

constexpr int kDensePanels = 4;  // of 16 rows, an item

// Weights [group of up to 4 panels][step][panel] of 64 bytes; in front what int8 sums start at.
template <class Math>
size_t place_dense(const DenseSpec* spec, char* memory, Dense* dense) {
  constexpr int kInputs = kStepBytes / Math::kElementBytes;
  using Element = typename Math::Element;
  Carver carver{memory, 0};
  const int steps = steps_of_length<Math>(spec->n), panels = spec->rows / kLanes;
  char* packed = take<char>(carver, static_cast<size_t>(spec->rows) * sizeof(int32_t) + static_cast<size_t>(panels) * steps * kVectorBytes);
  float* scale = take<float>(carver, spec->rows);
  float* bias = take<float>(carver, spec->rows);
  copy_padded(spec->scale, spec->rows, scale, spec->rows);
  copy_padded(spec->bias, spec->rows, bias, spec->rows);
  if (!memory) return carver.used;
  auto* start = reinterpret_cast<int32_t*>(packed);
  for (int r = 0; r < spec->rows; r++) *start++ = spec->q ? Math::start_of(spec->q + static_cast<size_t>(r) * spec->n, spec->n) : 0;
  auto* w = reinterpret_cast<Element*>(start);
  for (int panel = 0; panel < panels; panel += kDensePanels)
    for (int k = 0; k < steps; k++)
      for (int m = panel; m < smaller(panel + kDensePanels, panels); m++)
        for (int lane = 0; lane < kLanes; lane++)
          for (int e = 0; e < kInputs; e++) {
            const int i = k * kInputs + e;
            *w++ = i < spec->n ? Math::weight(spec->w, spec->q, (static_cast<size_t>(m) * kLanes + lane) * spec->n + i) : Element{0};
          }
  *dense = Dense{spec->rows, steps * kInputs, blocks_of(panels, kDensePanels), packed, scale, bias};
  return carver.used;
}

template <class Math>
size_t dense_bytes(const DenseSpec* spec) {
  return place_dense<Math>(spec, nullptr, nullptr);
}

template <class Math>
void pack_dense(const DenseSpec* spec, void* memory, Dense* dense) {
  place_dense<Math>(spec, static_cast<char*>(memory), dense);
}

template <class Math, int kPanels>
void dense_group(const Dense* dense, const char* x, float* y, int row, const char* w) {
  typename Math::Sum sum[2][kPanels];
#pragma GCC unroll 4
  for (int m = 0; m < kPanels; m++) {
    sum[0][m] = Math::start_at(static_cast<const int32_t*>(dense->weights) + row + m * kLanes);
    sum[1][m] = Math::zero();
  }
  const int steps = dense->n * Math::kElementBytes / kStepBytes;
  int k = 0;
  for (; k + 1 < steps; k += 2)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++) {
      const __m512i v = Math::spread(x + (k + odd) * kStepBytes);
#pragma GCC unroll 4
      for (int m = 0; m < kPanels; m++, w += kVectorBytes) sum[odd][m] = Math::dot(sum[odd][m], _mm512_load_si512(w), v);
    }
  if (k < steps) {
    const __m512i v = Math::spread(x + k * kStepBytes);
#pragma GCC unroll 4
    for (int m = 0; m < kPanels; m++, w += kVectorBytes) sum[0][m] = Math::dot(sum[0][m], _mm512_load_si512(w), v);
  }
#pragma GCC unroll 4
  for (int m = 0; m < kPanels; m++) {
    const int r = row + m * kLanes;
    _mm512_storeu_ps(y + r, Math::scaled(Math::add(sum[0][m], sum[1][m]), dense->scale + r, dense->bias + r));
  }
}

template <class Math>
void dense(const Dense* dense, const void* x, float* y, int first_item, int last_item) {
  using Group = void (*)(const Dense*, const char*, float*, int, const char*);
  static constexpr Group kGroups[kDensePanels] = {dense_group<Math, 1>, dense_group<Math, 2>, dense_group<Math, 3>, dense_group<Math, 4>};
  const char* weights = static_cast<const char*>(dense->weights) + static_cast<size_t>(dense->rows) * sizeof(int32_t);
  const size_t panel_bytes = static_cast<size_t>(dense->n) * Math::kElementBytes / kStepBytes * kVectorBytes;
  for (int item = first_item; item < last_item; item++) {
    const int panel = item * kDensePanels, panels = smaller(kDensePanels, dense->rows / kLanes - panel);
    kGroups[panels - 1](dense, static_cast<const char*>(x), y, panel * kLanes, weights + panel * panel_bytes);
  }
}

// ---- store, first and last layer ----------------------------------------------------------------------------------------------------

template <class Math>
void store(const float* x, float inv_scale, void* y, int n) {
  for (int i = 0; i < n; i += kLanes)
    Math::store16(static_cast<char*>(y) + static_cast<ptrdiff_t>(i) * Math::kElementBytes, _mm512_loadu_ps(x + i), _mm512_set1_ps(inv_scale));
}

template <class Math>
void store_row(const float* re, const float* im, float inv_scale, void* row, int channels, int planes) {
  for (int c = 0; c < channels; c += kLanes)
    Math::store_complex(static_cast<char*>(row) + c * Math::kElementBytes, static_cast<ptrdiff_t>(channels) * Math::kElementBytes,
                        _mm512_loadu_ps(re + c), _mm512_loadu_ps(im + c), _mm512_set1_ps(inv_scale), planes);
}

EK_INLINE __mmask16 lanes_left(int n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// Weights of one tap are c_out floats in a row, as the spec has them: nothing to pack.
template <class Math, int kColumns>
EK_INLINE void first_block(const ConvSpec* spec, const Tap* taps, const Out* out, int column, int c) {
  const __mmask16 mask = lanes_left(spec->c_out - c);
  __m512 re[kColumns], im[kColumns];
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++) re[n] = im[n] = _mm512_setzero_ps();
  for (int t = 0; t < spec->n_taps; t++) {
    const __m512 w_re = _mm512_maskz_loadu_ps(mask, spec->w[0] + static_cast<ptrdiff_t>(t) * spec->c_out + c);
    const __m512 w_im = _mm512_maskz_loadu_ps(mask, spec->w[1] + static_cast<ptrdiff_t>(t) * spec->c_out + c);
    const ptrdiff_t step = spec->sources[t].step;
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) {
      const __m512 a = _mm512_set1_ps(x[n * step]), b = _mm512_set1_ps(x[n * step + 1]);
      re[n] = _mm512_fmadd_ps(w_re, a, re[n]);
      im[n] = _mm512_fmadd_ps(w_re, b, im[n]);
      re[n] = _mm512_fnmadd_ps(w_im, b, re[n]);
      im[n] = _mm512_fmadd_ps(w_im, a, im[n]);
    }
  }
  float padded[4][kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) _mm512_storeu_ps(padded[i], _mm512_maskz_loadu_ps(mask, (i < 2 ? spec->gain[i] : spec->bias[i - 2]) + c));
  const __m512 slope = _mm512_set1_ps(spec->slope), inv_scale = _mm512_set1_ps(spec->inv_scale);
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++)
    write_complex<Math>(out, column + n, c, affine(re[n], padded[0], padded[2], slope), affine(im[n], padded[1], padded[3], slope), inv_scale,
                        Math::planes(spec->algorithm));
}

template <class Math>
void first(const ConvSpec* spec, const Tap* taps, const Out* out, int first_column, int last_column) {
  int n = first_column;
  for (; n + 8 <= last_column; n += 8)
    for (int c = 0; c < spec->c_out; c += kLanes) first_block<Math, 8>(spec, taps, out, n, c);
  for (; n < last_column; n++)
    for (int c = 0; c < spec->c_out; c += kLanes) first_block<Math, 1>(spec, taps, out, n, c);
}

// Adds up the lanes of 8 vectors at once: lane i of the result is the sum over v[i].
EK_INLINE __m256 add_lanes(const __m512 (&v)[8]) {
  __m256 half[8], pair[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) pair[i] = _mm256_hadd_ps(half[2 * i], half[2 * i + 1]);
  const __m256 low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);  // [0 1 2 3 | 0 1 2 3], [4 5 6 7 | 4 5 6 7]
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// Lanes are input channels here, since there is one output channel. Weights of one tap are c_in floats in a row.
template <int kColumns>
EK_INLINE void last_block(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int column) {
  __m512 sums[8];  // [2 * column] real, [2 * column + 1] imaginary
  __m512 more[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) sums[i] = more[i] = _mm512_setzero_ps();
  const float* w_re = spec->w[0];
  const float* w_im = spec->w[1];
  for (int t = 0; t < spec->n_taps; t++) {
    const int c_in = spec->sources[t].c_in, plane = rounded(c_in);
    const ptrdiff_t step = spec->sources[t].step;
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
    for (int c = 0; c < c_in; c += kLanes) {
      const __mmask16 mask = lanes_left(c_in - c);
      const __m512 wr = _mm512_maskz_loadu_ps(mask, w_re + c), wi = _mm512_maskz_loadu_ps(mask, w_im + c);
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; n++) {
        const __m512 a = _mm512_loadu_ps(x + n * step + c), b = _mm512_loadu_ps(x + n * step + plane + c);
        sums[2 * n] = _mm512_fmadd_ps(wr, a, sums[2 * n]);
        sums[2 * n + 1] = _mm512_fmadd_ps(wr, b, sums[2 * n + 1]);
        more[2 * n] = _mm512_fnmadd_ps(wi, b, more[2 * n]);
        more[2 * n + 1] = _mm512_fmadd_ps(wi, a, more[2 * n + 1]);
      }
    }
    w_re += c_in;
    w_im += c_in;
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) sums[i] = _mm512_add_ps(sums[i], more[i]);
  float y[8];
  _mm256_storeu_ps(y, add_lanes(sums));
#pragma GCC unroll 4
  for (int n = 0; n < kColumns; n++) {
    const float re = spec->gain[0][0] * y[2 * n] + spec->bias[0][0], im = spec->gain[1][0] * y[2 * n + 1] + spec->bias[1][0];
    y_re[2 * (column + n)] = re > 0.0f ? re : spec->slope * re;
    y_im[2 * (column + n)] = im > 0.0f ? im : spec->slope * im;
  }
}

void last(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int first_column, int last_column) {
  int n = first_column;
  for (; n + 4 <= last_column; n += 4) last_block<4>(spec, taps, y_re, y_im, n);
  for (; n < last_column; n++) last_block<1>(spec, taps, y_re, y_im, n);
}

}  // namespace
}  // namespace ek
#endif
