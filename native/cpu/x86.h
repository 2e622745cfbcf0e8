// What the rows of x86 share: loops over `Math`, which says what a vector and one step of a row's format are.
//
// One step of an inner loop takes four bytes of an input plane (one f32, two bf16, four int8 or two widened ones), spread over all lanes,
// against a vector of weights for as many output channels as it has lanes. So packed weights look alike in every format:
//
//     [group of panels][tap][step][panel of the group][real, imaginary vector]        a panel: the output channels of one vector
//
// and a block of panels x columns complex sums stays in registers. `Math` provides
//
//     V                      vectors of floats, and how large a block may be: Vec8 (avx2.h), Vec16 (avx512.h)
//     Element, Weight        of frames and of packed weights;  Sum and Input: what multiply adds to and takes
//     spread, input, load    four bytes over all lanes; the planes of one step; one vector of weights
//     dot, multiply, add, zero, start_at, to_float, scaled      arithmetic on sums
//     weight, start_of       packing: one weight; what an int8 sum starts at
//     store, store_complex   floats to a frame
//     write_change           what changed in one vector of complex channels, and whether that fits
//     load_sum, sum_weight   weights of both frames, added when loaded, or (kStoresSum) when packed
//     keep, kept, minus      sums that wait for the next step: to memory; from it, and what they start at beside it; start - sum
//
// Everything is in an unnamed namespace: the linker must not give one instruction set's code to a file for another.
#ifndef EK_CPU_X86_H
#define EK_CPU_X86_H

#include "pack.h"

#define EK_INLINE __attribute__((always_inline)) inline
#define EK_INLINE_LAMBDA __attribute__((always_inline))

namespace ek {
namespace {

constexpr int kStepBytes = 4;  // of one input plane

// Hides from GCC where the next step's operands are. Else it moves loads across steps, and copies and spills sums to make room for them.
template <class A, class B>
EK_INLINE void one_step_at_a_time(A*& x, B*& w) {
  asm volatile("" : "+r"(x), "+r"(w));
}

EK_INLINE int blocks_of(int n, int size) { return (n + size - 1) / size; }
EK_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Inputs in a step, bytes of a vector of weights, steps that n inputs take.
template <class Math>
constexpr int kInputs = kStepBytes / static_cast<int>(sizeof(typename Math::Element));
template <class Math>
constexpr int kVectorBytes = Math::V::kLanes * kInputs<Math> * static_cast<int>(sizeof(typename Math::Weight));
template <class Math>
EK_INLINE int steps_of(int n) {
  return blocks_of(n, kInputs<Math>);
}

// ---- exp, sigmoid, tanh -------------------------------------------------------------------------------------------------------------

// e^-x with x kept in +-limit <= 80; relative error 2e-7. -x = n ln 2 + f, then a polynomial of degree 6 in f (Cephes expf).
template <class V>
EK_INLINE typename V::Floats exp_minus(typename V::Floats x, float limit) {
  using F = typename V::Floats;
  const F minus = V::zero() - V::max(V::all(-limit), V::min(V::all(limit), x));  // a NaN stays one: min and max return their second then
  const F n = V::round(minus * V::all(1.44269504f));
  F f = V::minus_product(n, V::all(0.693359375f), minus);
  f = V::minus_product(n, V::all(-2.12194440e-4f), f);
  F p = V::all(1.9875691500e-4f);
  p = V::plus_product(p, f, V::all(1.3981999507e-3f));
  p = V::plus_product(p, f, V::all(8.3334519073e-3f));
  p = V::plus_product(p, f, V::all(4.1665795894e-2f));
  p = V::plus_product(p, f, V::all(1.6666665459e-1f));
  p = V::plus_product(p, f, V::all(5.0000001201e-1f));
  p = V::plus_product(p, f * f, f + V::all(1.0f));
  return V::times_two_to(p, n);
}

constexpr float kFlat = 30.0f;  // beyond it sigmoid and tanh are 0 or 1 in f32

template <class V>
EK_INLINE typename V::Floats sigmoid(typename V::Floats x) {
  return V::all(1.0f) / (V::all(1.0f) + exp_minus<V>(x, kFlat));
}
template <class V>
EK_INLINE typename V::Floats tanh_of(typename V::Floats x) {
  const auto e = exp_minus<V>(x + x, kFlat);
  return (V::all(1.0f) - e) / (V::all(1.0f) + e);
}

// ---- convolution --------------------------------------------------------------------------------------------------------------------

// Multiplies and adds apart, for int8 rows agree bit for bit.
template <class V>
EK_INLINE typename V::Floats affine(typename V::Floats sum, typename V::Floats gain, typename V::Floats bias, typename V::Floats slope) {
  return V::prelu(gain * sum + bias, slope);
}

// Sums of floats, which start at 0, on their way from one step to the next.
template <class V>
struct FloatSums {
  using Sum = typename V::Floats;
  static EK_INLINE Sum kept(const float* at, const int32_t*) { return V::load(at); }
  static EK_INLINE void keep(float* at, Sum sum) { V::store(at, sum); }
  static EK_INLINE Sum negative(Sum sum) { return V::zero() - sum; }
  static EK_INLINE Sum minus(const int32_t*, Sum sum) { return negative(sum); }
};

// What changed in one vector of complex channels, of floats as they are stored.
template <class Math>
EK_INLINE bool write_change_of_floats(const typename Math::Element* now, const typename Math::Element* before, typename Math::Element* change,
                                      ptrdiff_t plane, int planes) {
  Math::store_complex(change, plane, Math::widen(now) - Math::widen(before), Math::widen(now + plane) - Math::widen(before + plane), 1.0f, planes);
  return true;
}

// One vector of complex channels of one column to where `out` wants it.
template <class Math>
EK_INLINE void write_complex(const Out* out, int column, int c, typename Math::V::Floats re, typename Math::V::Floats im, float inv_scale,
                             int planes) {
  if (out->frame) {
    auto* row = static_cast<typename Math::Element*>(out->frame) + static_cast<ptrdiff_t>(column) * out->frame_step + c;
    Math::store_complex(row, out->channels, re, im, inv_scale, planes);
    if (out->change) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(column) * out->frame_step + c;
      if (!Math::write_change(row, static_cast<const typename Math::Element*>(out->before) + at, static_cast<typename Math::Element*>(out->change) + at,
                              out->channels, planes))
        say_beyond(out->beyond);
    }
  }
  if (out->floats) {
    float* row = out->floats + static_cast<ptrdiff_t>(column) * out->floats_step + c;
    Math::V::store(row, re);
    Math::V::store(row + out->channels, im);
  }
}

// Weights of older frames lie `half` bytes before those of newer ones, and their sum, where a row stores it, as far behind these.
enum Frames { kOneFrame, kBothFrames };
template <class Math, Frames kFrames>
EK_INLINE typename Math::Weights load_of(const char* w, size_t half) {
  if constexpr (kFrames == kBothFrames)
    return Math::load_sum(w, half);
  else
    return Math::load(w);
}

template <class Math, int kColumns, int kPanels>
using BlockSums = typename Math::Sum[kPanels][kColumns];

// Adds some taps, every step of theirs, to a block's sums.
template <class Math, int kColumns, int kPanels, Frames kFrames>
EK_INLINE void add_taps(const Conv* conv, const Tap* taps, int n_taps, int column, const char* w, size_t half, BlockSums<Math, kColumns, kPanels>& re,
                        BlockSums<Math, kColumns, kPanels>& im) {
  for (int t = 0; t < n_taps; t++) {
    const ptrdiff_t step = static_cast<ptrdiff_t>(conv->step[t]) * static_cast<ptrdiff_t>(sizeof(typename Math::Element));
    const ptrdiff_t plane = rounded(conv->c_in[t]) * static_cast<ptrdiff_t>(sizeof(typename Math::Element));
    const char* x = static_cast<const char*>(taps[t].x) + column * step;
    const int steps = conv->c_in[t] / kInputs<Math>;
#pragma GCC unroll 1
    for (int k = 0; k < steps; k++, x += kStepBytes, w += kPanels * 2 * kVectorBytes<Math>) {
      one_step_at_a_time(x, w);
      typename Math::Weights w_re[kPanels], w_im[kPanels];
#pragma GCC unroll 8
      for (int m = 0; m < kPanels; m++) {
        w_re[m] = load_of<Math, kFrames>(w + 2 * m * kVectorBytes<Math>, half);
        w_im[m] = load_of<Math, kFrames>(w + (2 * m + 1) * kVectorBytes<Math>, half);
      }
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++) {
        const typename Math::Input input = Math::input(x + n * step, plane);
#pragma GCC unroll 8
        for (int m = 0; m < kPanels; m++) Math::multiply(re[m][n], im[m][n], w_re[m], w_im[m], input);
      }
    }
  }
}

// each(sum, its place in kept, what it starts at) for the sums of a block.
template <class V, int kColumns, int kPanels, class Sums, class Each>
EK_INLINE void for_sums(Sums& re, Sums& im, float* kept, const int32_t* starts, Each each) {
#pragma GCC unroll 8
  for (int m = 0; m < kPanels; m++)
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) {
      float* at = kept + 2 * (m * kColumns + n) * V::kLanes;
      each(re[m][n], at, starts + m * V::kLanes);
      each(im[m][n], at + V::kLanes, starts + m * V::kLanes);
    }
}

// What int8 sums start at stands in front of a phase's weights: for all taps, and if it takes turns, for the older frames' and the newer ones'.
enum Starts { kAll, kOlder, kNewer, kStarts };
EK_INLINE const int32_t* starts_of(const Conv* conv, Starts which) { return static_cast<const int32_t*>(conv->weights) + which * conv->c_out; }
EK_INLINE size_t starts_bytes(int c_out, bool takes_turns) { return (takes_turns ? kStarts : 1) * static_cast<size_t>(c_out) * sizeof(int32_t); }
EK_INLINE const char* weights_of(const Conv* conv) { return static_cast<const char*>(conv->weights) + starts_bytes(conv->c_out, conv->takes_turns); }

// One block: every tap, every step, then the epilogue. `half`: bytes of the weights of one frame; `kept`: the block's own part of Out::kept.
template <class Math, int kColumns, int kPanels>
void block(const Conv* conv, const Tap* taps, const Out* out, int column, int panel, const char* w, size_t half, float* kept) {
  using V = typename Math::V;
  BlockSums<Math, kColumns, kPanels> re, im;
#pragma GCC unroll 8
  for (int m = 0; m < kPanels; m++) {
    const typename Math::Sum start = Math::start_at(starts_of(conv, kAll) + (panel + m) * V::kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) re[m][n] = im[m][n] = start;
  }
  const auto add = [&](int first, int last, const char* from) EK_INLINE_LAMBDA { add_taps<Math, kColumns, kPanels, kOneFrame>(conv, taps + first, last - first, column, from, half, re, im); };
  if (out->turn == EK_PLAIN) {
    add(0, conv->n_taps, w);
  } else {
    using Sum = typename Math::Sum;
    const int n = conv->n_taps / 2;
    const int32_t *older = starts_of(conv, kOlder) + panel * V::kLanes, *newer = starts_of(conv, kNewer) + panel * V::kLanes;
    if (out->turn == EK_REST) {
      for_sums<V, kColumns, kPanels>(re, im, kept, newer, [](Sum& sum, const float* at, const int32_t* start) { sum = Math::kept(at, start); });
      add(0, n, w + half);
    } else {
      add_taps<Math, kColumns, kPanels, kBothFrames>(conv, taps, n, column, w, half, re, im);
      for_sums<V, kColumns, kPanels>(re, im, kept, older, [](Sum& sum, float* at, const int32_t* start) { Math::keep(at, sum), sum = Math::minus(start, sum); });
      add(n, 2 * n, w);
      for_sums<V, kColumns, kPanels>(re, im, kept, older, [](Sum& sum, const float*, const int32_t*) { sum = Math::negative(sum); });
    }
  }
  const auto slope = V::all(conv->slope);
  const float inv_scale = conv->inv_scale;
  const int planes = Math::planes(conv->variant);
  // What every column needs is loaded once: for all that GCC knows, a store could change it.
#pragma GCC unroll 8
  for (int m = 0; m < kPanels; m++) {
    const int c = (panel + m) * V::kLanes;
    const auto gain_re = V::load(conv->gain[0] + c), bias_re = V::load(conv->bias[0] + c), gain_im = V::load(conv->gain[1] + c), bias_im = V::load(conv->bias[1] + c);
    const auto y_re = [&](int n) EK_INLINE_LAMBDA { return affine<V>(Math::to_float(re[m][n]), gain_re, bias_re, slope); };
    const auto y_im = [&](int n) EK_INLINE_LAMBDA { return affine<V>(Math::to_float(im[m][n]), gain_im, bias_im, slope); };
    if (out->frame && !out->floats) {
      using Element = typename Math::Element;
      const ptrdiff_t step = out->frame_step, plane = out->channels, at = column * step + c;
      auto* row = static_cast<Element*>(out->frame) + at;
      if (!out->change) {
#pragma GCC unroll 8
        for (int n = 0; n < kColumns; n++) Math::store_complex(row + n * step, plane, y_re(n), y_im(n), inv_scale, planes);
      } else {
        const auto* before = static_cast<const Element*>(out->before) + at;
        auto* change = static_cast<Element*>(out->change) + at;
        bool fits = true;
#pragma GCC unroll 8
        for (int n = 0; n < kColumns; n++) {
          Math::store_complex(row + n * step, plane, y_re(n), y_im(n), inv_scale, planes);
          fits &= Math::write_change(row + n * step, before + n * step, change + n * step, plane, planes);
        }
        if (!fits) say_beyond(out->beyond);
      }
    } else {
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++) write_complex<Math>(out, column + n, c, y_re(n), y_im(n), inv_scale, planes);
    }
  }
}

using Block = void (*)(const Conv*, const Tap*, const Out*, int column, int panel, const char* w, size_t half, float* kept);

// What a phase is cut into: panels and columns of a block.
struct Cut {
  int panels, columns;
};

// The block function of a cut, for any smaller one at the edges too.
template <class Math>
EK_INLINE Block block_of(int panels, int columns) {
  if constexpr (Math::V::kLanes == 16) {
    static constexpr Block kBlocks[2][8] = {{block<Math, 1, 1>, block<Math, 2, 1>, block<Math, 3, 1>, block<Math, 4, 1>, block<Math, 5, 1>,
                                             block<Math, 6, 1>, block<Math, 7, 1>, block<Math, 8, 1>},
                                            {block<Math, 1, 2>, block<Math, 2, 2>, block<Math, 3, 2>, block<Math, 4, 2>}};
    return kBlocks[panels - 1][columns - 1];
  } else {
    static constexpr Block kBlocks[6] = {block<Math, 1, 1>, block<Math, 2, 1>, block<Math, 3, 1>,
                                         block<Math, 4, 1>, block<Math, 5, 1>, block<Math, 6, 1>};
    return kBlocks[columns - 1];
  }
}

// Where a row wants the sum of older and newer weights beside them.
template <class Math>
EK_INLINE bool takes_sum(const ConvSpec* spec) { return spec->takes_turns && Math::kStoresSum; }

// Everything of a packed phase but its weights. What int8 sums start at stands in front of them, one number for every output channel.
template <class Math>
size_t place_conv(const ConvSpec* spec, char* memory, Conv* conv, Cut cut, int vectors_per_step, char** weights) {
  constexpr int kLanesHere = Math::V::kLanes;
  Carver carver{memory, 0};
  const int c_out = rounded(spec->c_out);
  Conv placed{};
  placed.c_out = c_out;
  placed.columns = spec->columns;
  placed.n_taps = spec->n_taps;
  placed.block = cut.columns | cut.panels << 8;
  placed.variant = spec->algorithm;
  placed.items = blocks_of(c_out / kLanesHere, cut.panels) * blocks_of(spec->columns, cut.columns);
  placed.slope = spec->slope;
  placed.inv_scale = spec->inv_scale;
  placed.takes_turns = spec->takes_turns;
  size_t steps = 0;
  for (int t = 0; t < spec->n_taps; t++) {
    placed.c_in[t] = rounded(spec->sources[t].c_in, kInputs<Math>);
    placed.step[t] = spec->sources[t].step;
    steps += steps_of<Math>(spec->sources[t].c_in);
  }
  if (takes_sum<Math>(spec)) steps += steps / 2;
  const size_t starts = starts_bytes(c_out, spec->takes_turns);
  char* packed = take<char>(carver, starts + steps * vectors_per_step * kVectorBytes<Math> * (c_out / kLanesHere));
  placed.weights = packed;
  *weights = packed ? packed + starts : nullptr;
  for (int i = 0; i < 2; i++) {
    float* gain = take<float>(carver, c_out);
    float* bias = take<float>(carver, c_out);
    copy_padded(spec->gain[i], spec->c_out, gain, c_out);
    copy_padded(spec->bias[i], spec->c_out, bias, c_out);
    placed.gain[i] = gain;
    placed.bias[i] = bias;
  }
  if (memory) *conv = placed;
  return carver.used;
}

// Calls visit(tap, step, panel, first weight of the tap) for the panels of one group in the order of packed weights.
template <class Math, class Visit>
EK_INLINE void visit_group(const ConvSpec* spec, int n_taps, int first_panel, int last_panel, Visit visit) {
  size_t at = 0;
  for (int t = 0; t < n_taps; t++) {
    for (int k = 0; k < steps_of<Math>(spec->sources[t].c_in); k++)
      for (int panel = first_panel; panel < last_panel; panel++) visit(t, k, panel, at);
    at += static_cast<size_t>(spec->c_out) * spec->sources[t].c_in;
  }
}

// One vector of weights: the channels of a panel x the inputs of a step; zeros beyond the model's own.
template <class Math, class Get>
EK_INLINE void fill_vector(const ConvSpec* spec, int tap, int step, int panel, size_t at, char* to, Get get) {
  auto* weight = reinterpret_cast<typename Math::Weight*>(to);
  const int c_in = spec->sources[tap].c_in;
  for (int lane = 0; lane < Math::V::kLanes; lane++)
    for (int e = 0; e < kInputs<Math>; e++) {
      const int o = panel * Math::V::kLanes + lane, c = step * kInputs<Math> + e;
      *weight++ = o < spec->c_out && c < c_in ? get(at + static_cast<size_t>(o) * c_in + c) : typename Math::Weight{0};
    }
}

template <class Math>
size_t conv_bytes(const ConvSpec* spec) {
  char* weights;
  return place_conv<Math>(spec, nullptr, nullptr, Math::V::cut_of(spec->columns), 2, &weights);
}

template <class Math>
void pack_conv(const ConvSpec* spec, void* memory, Conv* conv) {
  char* w;
  const Cut cut = Math::V::cut_of(spec->columns);
  place_conv<Math>(spec, static_cast<char*>(memory), conv, cut, 2, &w);
  auto* start = static_cast<int32_t*>(memory);
  for (int o = 0; o < conv->c_out * (spec->takes_turns ? kStarts : 1); o++) start[o] = 0;
  for (int part = 0; part < 2 && spec->q[part]; part++) {
    const int8_t* q = spec->q[part];
    for (int t = 0; t < spec->n_taps; t++)
      for (int o = 0; o < spec->c_out; o++, q += spec->sources[t].c_in) {
        const int32_t of_tap = Math::start_of(q, spec->sources[t].c_in);
        start[o] += of_tap;
        if (spec->takes_turns) start[(t < spec->n_taps / 2 ? kOlder : kNewer) * conv->c_out + o] += of_tap;
      }
  }
  const int panels = conv->c_out / Math::V::kLanes;
  const size_t newer = takes_sum<Math>(spec) ? weights_of_half(spec) : 0;
  for (int panel = 0; panel < panels; panel += cut.panels) {
    const auto visit = [&](int n_taps, auto weight) {
      visit_group<Math>(spec, n_taps, panel, smaller(panel + cut.panels, panels), [&](int tap, int step, int m, size_t at) {
        for (int part = 0; part < 2; part++, w += kVectorBytes<Math>) fill_vector<Math>(spec, tap, step, m, at, w, [&](size_t i) { return weight(part, i); });
      });
    };
    visit(spec->n_taps, [&](int part, size_t i) { return Math::weight(spec->w[part], spec->q[part], i); });
    if (newer)
      visit(spec->n_taps / 2, [&](int part, size_t i) { return Math::sum_weight(spec->w[part], spec->q[part], i, newer + i); });
  }
}

// Bytes of weights that one panel takes, and those of them that belong to one frame.
template <class Math>
EK_INLINE size_t frame_bytes(const Conv* conv, int vectors_per_step) {
  size_t steps = 0;
  for (int t = 0; t < conv->n_taps / 2; t++) steps += conv->c_in[t] / kInputs<Math>;
  return steps * vectors_per_step * kVectorBytes<Math>;
}
template <class Math>
EK_INLINE size_t panel_bytes(const Conv* conv, int vectors_per_step) {
  if (conv->takes_turns) return (Math::kStoresSum ? 3 : 2) * frame_bytes<Math>(conv, vectors_per_step);
  size_t steps = 0;
  for (int t = 0; t < conv->n_taps; t++) steps += conv->c_in[t] / kInputs<Math>;
  return steps * vectors_per_step * kVectorBytes<Math>;
}

// Items count column blocks first, so that neighbours share weights.
template <class Math>
void conv(const Conv* conv, const Tap* taps, const Out* out, int first_item, int last_item) {
  const int columns = conv->block & 0xff, panels = conv->block >> 8, column_blocks = blocks_of(conv->columns, columns);
  const char* weights = weights_of(conv);
  const size_t bytes = panel_bytes<Math>(conv, 2), half = conv->takes_turns ? frame_bytes<Math>(conv, 2) : 0;
  for (int item = first_item; item < last_item; item++) {
    const int panel = item / column_blocks * panels, m = smaller(panels, conv->c_out / Math::V::kLanes - panel);
    const int at = item % column_blocks, column = conv->columns * at / column_blocks;  // blocks of nearly equal size
    float* kept = out->kept ? static_cast<float*>(out->kept) + static_cast<ptrdiff_t>(item) * panels * columns * 2 * Math::V::kLanes : nullptr;
    block_of<Math>(m, conv->columns * (at + 1) / column_blocks - column)(conv, taps, out, column, panel, weights + panel * bytes, m * half, kept);
  }
}

// ---- recurrent cells ----------------------------------------------------------------------------------------------------------------

// Weights [panel of hidden units][step of x, then of h][gate] of a vector each; an item is such a panel, on both inputs.
// In front of them: what int8 sums of x and of h start at, [2][gates][hidden].
EK_INLINE int gates_of(CellKind kind) { return kind == EK_LSTM ? 4 : 3; }

template <class Math>
size_t place_cell(const CellSpec* spec, char* memory, Cell* cell) {
  constexpr int kLanesHere = Math::V::kLanes, kInputsHere = kInputs<Math>;
  using Weight = typename Math::Weight;
  Carver carver{memory, 0};
  const int gates = gates_of(spec->kind), hidden = rounded(spec->hidden), n_x = sum_of(spec->segment, spec->n_segments);
  size_t steps = steps_of<Math>(spec->hidden);
  for (int s = 0; s < spec->n_segments; s++) steps += steps_of<Math>(spec->segment[s]);
  const size_t starts = static_cast<size_t>(2) * gates * hidden;
  char* packed = take<char>(carver, starts * sizeof(int32_t) + steps * gates * (hidden / kLanesHere) * kVectorBytes<Math>);
  int* segment = take<int>(carver, static_cast<size_t>(spec->n_segments) + 1);
  const float* from[4] = {spec->scale_x, spec->scale_h, spec->bias_x, spec->bias_h};
  float* piece[4];
  for (float*& p : piece) p = take<float>(carver, static_cast<size_t>(gates) * hidden);
  if (!memory) return carver.used;

  for (int i = 0; i < 4; i++)
    for (int g = 0; g < gates; g++)
      copy_padded(from[i] ? from[i] + static_cast<ptrdiff_t>(g) * spec->hidden : nullptr, spec->hidden, piece[i] + g * hidden, hidden);
  for (int s = 0; s <= spec->n_segments; s++) segment[s] = rounded(s < spec->n_segments ? spec->segment[s] : spec->hidden, kInputsHere);

  auto* start = reinterpret_cast<int32_t*>(packed);
  for (int part = 0; part < 2; part++)
    for (int g = 0; g < gates; g++)
      for (int u = 0; u < hidden; u++) {
        const int n = part ? spec->hidden : n_x;
        const int8_t* q = part ? spec->q_h : spec->q_x;
        *start++ = u < spec->hidden && q ? Math::start_of(q + (static_cast<size_t>(g) * spec->hidden + u) * n, n) : 0;
      }
  auto* w = reinterpret_cast<Weight*>(start);
  for (int u0 = 0; u0 < hidden; u0 += kLanesHere) {
    int begin = 0;
    for (int s = 0; s <= spec->n_segments; s++) {
      const bool of_h = s == spec->n_segments;
      const int length = of_h ? spec->hidden : spec->segment[s], n = of_h ? spec->hidden : n_x;
      const float* floats = of_h ? spec->w_h : spec->w_x;
      const int8_t* q = of_h ? spec->q_h : spec->q_x;
      for (int i = 0; i < segment[s]; i += kInputsHere)
        for (int g = 0; g < gates; g++)
          for (int u = u0; u < u0 + kLanesHere; u++)
            for (int e = i; e < i + kInputsHere; e++) {
              const size_t at = (static_cast<size_t>(g) * spec->hidden + u) * n + (of_h ? 0 : begin) + e;
              *w++ = u < spec->hidden && e < length ? Math::weight(floats, q, at) : Weight{0};
            }
      begin += length;
    }
  }
  *cell = Cell{};
  cell->kind = spec->kind;
  cell->hidden = hidden;
  cell->n_segments = spec->n_segments;
  cell->segment = segment;
  cell->items = hidden / kLanesHere;
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

// Sums of every gate, for both inputs, of as many items as registers allow: a step's inputs are spread once for all of them, the latency of
// a sum is hidden, and weights of two items come out of a core's second cache faster, as two streams, than one after the other.
template <class Math>
constexpr int kItemsTogether = Math::V::kLanes == 16 ? 2 : 1;

// W_x x + b_x and W_h h + b_h of some neighbouring items, for both inputs: [item][input][gate][x, h] of a vector each.
template <class Math, int kGates, int kItems>
void cell_sums(const Cell* cell, const CellRun* run, int item, float* sums) {
  using V = typename Math::V;
  const int hidden = cell->hidden, u = item * V::kLanes;
  const auto* starts = static_cast<const int32_t*>(cell->weights);
  ptrdiff_t steps = 0;
  for (int s = 0; s <= cell->n_segments; s++) steps += cell->segment[s] / kInputs<Math>;
  const ptrdiff_t item_bytes = steps * kGates * kVectorBytes<Math>;
  const char* w = reinterpret_cast<const char*>(starts + 2 * kGates * hidden) + item * item_bytes;

  for (int part = 0; part < 2; part++) {
    typename Math::Sum sum[kItems][2][kGates];
#pragma GCC unroll 2
    for (int i = 0; i < kItems; i++)
#pragma GCC unroll 4
      for (int g = 0; g < kGates; g++) sum[i][0][g] = sum[i][1][g] = Math::start_at(starts + (part * kGates + g) * hidden + u + i * V::kLanes);

    const int n_segments = part ? 1 : cell->n_segments;
    for (int s = 0; s < n_segments; s++) {
      const char* x0 = static_cast<const char*>(part ? run->h_old[0] : run->x[0][s]);
      const char* x1 = static_cast<const char*>(part ? run->h_old[1] : run->x[1][s]);
#pragma GCC unroll 1
      for (int k = cell->segment[part ? cell->n_segments : s] / kInputs<Math>; k > 0; k--, x0 += kStepBytes, x1 += kStepBytes, w += kGates * kVectorBytes<Math>) {
        const auto a = Math::spread(x0), b = Math::spread(x1);
#pragma GCC unroll 2
        for (int i = 0; i < kItems; i++)
#pragma GCC unroll 4
          for (int g = 0; g < kGates; g++) {
            auto v = Math::load(w + i * item_bytes + g * kVectorBytes<Math>);
            if constexpr (V::kLanes == 16) asm("" : "+v"(v));  // else GCC loads it twice, once into either product
            sum[i][0][g] = Math::dot(sum[i][0][g], v, a);
            sum[i][1][g] = Math::dot(sum[i][1][g], v, b);
          }
      }
    }

    const float* scale = (part ? cell->scale_h : cell->scale_x) + u;
    const float* bias = (part ? cell->bias_h : cell->bias_x) + u;
#pragma GCC unroll 2
    for (int i = 0; i < kItems; i++)
#pragma GCC unroll 2
      for (int k = 0; k < 2; k++)
#pragma GCC unroll 4
        for (int g = 0; g < kGates; g++) {
          const int at = g * hidden + i * V::kLanes;
          V::store(sums + (((i * 2 + k) * kGates + g) * 2 + part) * V::kLanes, Math::scaled(sum[i][k][g], scale + at, bias + at));
        }
  }
}

// The gates of one item for input k, and the new state.
template <class Math, int kGates>
EK_INLINE void cell_gates(const CellRun* run, int k, int u, const float* sums) {
  using V = typename Math::V;
  using F = typename V::Floats;
  const auto x = [&](int gate) { return V::load(sums + gate * 2 * V::kLanes); };
  const auto from_h = [&](int gate) { return V::load(sums + (gate * 2 + 1) * V::kLanes); };
  const auto both = [&](int gate) { return x(gate) + from_h(gate); };
  const F one = V::all(1.0f);
  F h;
  if constexpr (kGates == 4) {
    // c' = c / (1 + e_f) + (1 - e_g) / ((1 + e_i) (1 + e_g)),  h = (1 - e_c) / ((1 + e_o) (1 + e_c)): three divisions, not five.
    const F g = both(2), e_g = exp_minus<V>(g + g, kFlat);
    const F i = one + exp_minus<V>(both(0), kFlat), f = one + exp_minus<V>(both(1), kFlat), o = one + exp_minus<V>(both(3), kFlat);
    const F c = V::load(run->c[k] + u) / f + (one - e_g) / (i * (one + e_g));
    V::store(run->c[k] + u, c);
    const F e_c = exp_minus<V>(c + c, kFlat);
    h = (one - e_c) / (o * (one + e_c));
  } else {
    const F r = sigmoid<V>(both(0)), z = sigmoid<V>(both(1)), n = tanh_of<V>(V::plus_product(r, from_h(2), x(2)));
    h = V::plus_product(z, V::load(run->h_f32_old[k] + u) - n, n);
  }
  V::store(run->h_f32[k] + u, h);
  Math::store(static_cast<typename Math::Element*>(run->h_new[k]) + u, h, 127.0f);
}

// Sums of several items first, then their gates: weights stream in without a pause, and gates of several items overlap.
constexpr int kItemsAtOnce = 8;

template <class Math, int kGates>
void cell_items(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  constexpr int kLanesHere = Math::V::kLanes, kSums = 2 * kGates * 2 * kLanesHere;
  alignas(64) float sums[kItemsAtOnce * kSums];
  for (int begin = first_item; begin < last_item; begin += kItemsAtOnce) {
    const int end = smaller(begin + kItemsAtOnce, last_item);
    int item = begin;
    for (; item + kItemsTogether<Math> <= end; item += kItemsTogether<Math>) cell_sums<Math, kGates, kItemsTogether<Math>>(cell, run, item, sums + (item - begin) * kSums);
    for (; item < end; item++) cell_sums<Math, kGates, 1>(cell, run, item, sums + (item - begin) * kSums);
    for (int item = begin; item < end; item++)
      for (int k = 0; k < 2; k++) cell_gates<Math, kGates>(run, k, item * kLanesHere, sums + (item - begin) * kSums + k * kSums / 2);
  }
}

template <class Math>
void cell(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  if (cell->kind == EK_LSTM)
    cell_items<Math, 4>(cell, run, first_item, last_item);
  else
    cell_items<Math, 3>(cell, run, first_item, last_item);
}

// ---- dense --------------------------------------------------------------------------------------------------------------------------

constexpr int kDensePanels = 4;  // an item

// Weights [group of up to 4 panels][step][panel] of a vector each; in front what int8 sums start at.
template <class Math>
size_t place_dense(const DenseSpec* spec, char* memory, Dense* dense) {
  constexpr int kLanesHere = Math::V::kLanes, kInputsHere = kInputs<Math>;
  using Weight = typename Math::Weight;
  Carver carver{memory, 0};
  const int steps = steps_of<Math>(spec->n), panels = spec->rows / kLanesHere;
  char* packed = take<char>(carver, spec->rows * sizeof(int32_t) + static_cast<size_t>(panels) * steps * kVectorBytes<Math>);
  float* scale = take<float>(carver, spec->rows);
  float* bias = take<float>(carver, spec->rows);
  copy_padded(spec->scale, spec->rows, scale, spec->rows);
  copy_padded(spec->bias, spec->rows, bias, spec->rows);
  if (!memory) return carver.used;
  auto* start = reinterpret_cast<int32_t*>(packed);
  for (int r = 0; r < spec->rows; r++) *start++ = spec->q ? Math::start_of(spec->q + static_cast<size_t>(r) * spec->n, spec->n) : 0;
  auto* w = reinterpret_cast<Weight*>(start);
  for (int panel = 0; panel < panels; panel += kDensePanels)
    for (int k = 0; k < steps; k++)
      for (int m = panel; m < smaller(panel + kDensePanels, panels); m++)
        for (int r = m * kLanesHere; r < (m + 1) * kLanesHere; r++)
          for (int i = k * kInputsHere; i < (k + 1) * kInputsHere; i++)
            *w++ = i < spec->n ? Math::weight(spec->w, spec->q, static_cast<size_t>(r) * spec->n + i) : Weight{0};
  *dense = Dense{spec->rows, steps * kInputsHere, blocks_of(panels, kDensePanels), packed, scale, bias};
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

// Odd steps have sums of their own, to hide the latency of one.
template <class Math, int kPanels>
void dense_group(const Dense* dense, const char* x, float* y, int row, const char* w) {
  using V = typename Math::V;
  typename Math::Sum sum[2][kPanels];
#pragma GCC unroll 4
  for (int m = 0; m < kPanels; m++) {
    sum[0][m] = Math::start_at(static_cast<const int32_t*>(dense->weights) + row + m * V::kLanes);
    sum[1][m] = Math::zero();
  }
  const auto step = [&](typename Math::Sum(&to)[kPanels], int k) {
    const auto v = Math::spread(x + k * kStepBytes);
#pragma GCC unroll 4
    for (int m = 0; m < kPanels; m++, w += kVectorBytes<Math>) to[m] = Math::dot(to[m], Math::load(w), v);
  };
  const int steps = dense->n / kInputs<Math>;
  int k = 0;
  for (; k + 2 <= steps; k += 2) {
    step(sum[0], k);
    step(sum[1], k + 1);
  }
  if (k < steps) step(sum[0], k);
#pragma GCC unroll 4
  for (int m = 0; m < kPanels; m++) {
    const int r = row + m * V::kLanes;
    V::store(y + r, Math::scaled(Math::add(sum[0][m], sum[1][m]), dense->scale + r, dense->bias + r));
  }
}

template <class Math>
void dense(const Dense* dense, const void* x, float* y, int first_item, int last_item) {
  using Group = void (*)(const Dense*, const char*, float*, int, const char*);
  static constexpr Group kGroups[kDensePanels] = {dense_group<Math, 1>, dense_group<Math, 2>, dense_group<Math, 3>, dense_group<Math, 4>};
  const char* weights = static_cast<const char*>(dense->weights) + dense->rows * sizeof(int32_t);
  const size_t bytes = static_cast<size_t>(dense->n / kInputs<Math>) * kVectorBytes<Math>;
  for (int item = first_item; item < last_item; item++) {
    const int panel = item * kDensePanels, panels = smaller(kDensePanels, dense->rows / Math::V::kLanes - panel);
    kGroups[panels - 1](dense, static_cast<const char*>(x), y, panel * Math::V::kLanes, weights + panel * bytes);
  }
}

// ---- store, first and last layer ----------------------------------------------------------------------------------------------------

template <class Math>
void store(const float* x, float inv_scale, void* y, int n) {
  for (int i = 0; i < n; i += Math::V::kLanes) Math::store(static_cast<typename Math::Element*>(y) + i, Math::V::load(x + i), inv_scale);
}

template <class Math>
void store_row(const float* re, const float* im, float inv_scale, void* row, int channels, int planes) {
  for (int c = 0; c < channels; c += Math::V::kLanes)
    Math::store_complex(static_cast<typename Math::Element*>(row) + c, channels, Math::V::load(re + c), Math::V::load(im + c), inv_scale, planes);
}

template <class Math>
bool change_row(const void* now, const void* before, void* change, int channels, int planes) {
  using Element = typename Math::Element;
  bool fits = true;
  for (int c = 0; c < channels; c += Math::V::kLanes)
    fits &= Math::write_change(static_cast<const Element*>(now) + c, static_cast<const Element*>(before) + c, static_cast<Element*>(change) + c, channels, planes);
  return fits;
}

// Weights of one tap are c_out floats in a row, as the spec has them: nothing to pack.
template <class Math, int kColumns>
void first_block(const ConvSpec* spec, const Tap* taps, const Out* out, int column, int c) {
  using V = typename Math::V;
  const int left = smaller(V::kLanes, spec->c_out - c);  // may be none: a panel of padding
  typename V::Floats re[kColumns], im[kColumns];
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++) re[n] = im[n] = V::zero();
  for (int t = 0; t < spec->n_taps; t++) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(t) * spec->c_out + c, step = spec->sources[t].step;
    const auto w_re = V::load_some(spec->w[0] + at, left), w_im = V::load_some(spec->w[1] + at, left);
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; n++) {
      const auto a = V::all(x[n * step]), b = V::all(x[n * step + 1]);
      re[n] = V::plus_product(w_re, a, re[n]);
      im[n] = V::plus_product(w_re, b, im[n]);
      re[n] = V::minus_product(w_im, b, re[n]);
      im[n] = V::plus_product(w_im, a, im[n]);
    }
  }
  typename V::Floats gain[4];  // and bias
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) gain[i] = V::load_some((i < 2 ? spec->gain[i] : spec->bias[i - 2]) + c, left);
  const auto slope = V::all(spec->slope);
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++)
    write_complex<Math>(out, column + n, c, affine<V>(re[n], gain[0], gain[2], slope), affine<V>(im[n], gain[1], gain[3], slope), spec->inv_scale,
                        Math::planes(spec->algorithm));
}

template <class Math>
void first(const ConvSpec* spec, const Tap* taps, const Out* out, int first_column, int last_column) {
  constexpr int kColumns = Math::V::kLanes == 16 ? 8 : 4;
  int n = first_column;
  for (; n + kColumns <= last_column; n += kColumns)
    for (int c = 0; c < rounded(spec->c_out); c += Math::V::kLanes) first_block<Math, kColumns>(spec, taps, out, n, c);
  for (; n < last_column; n++)
    for (int c = 0; c < rounded(spec->c_out); c += Math::V::kLanes) first_block<Math, 1>(spec, taps, out, n, c);
}

// Lanes are input channels here, since there is one output channel. Weights of one tap are c_in floats in a row.
template <class V, int kColumns>
void last_block(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int column) {
  constexpr int kSums = kColumns > 4 ? 16 : 8;
  typename V::Floats sums[kSums];  // [2 * column] real, [2 * column + 1] imaginary
#pragma GCC unroll 16
  for (int i = 0; i < kSums; i++) sums[i] = V::zero();
  const float* w_re = spec->w[0];
  const float* w_im = spec->w[1];
  for (int t = 0; t < spec->n_taps; t++) {
    const int c_in = spec->sources[t].c_in, plane = rounded(c_in);
    const ptrdiff_t step = spec->sources[t].step;
    const float* x = static_cast<const float*>(taps[t].x) + column * step;
    for (int c = 0; c < c_in; c += V::kLanes) {
      const int left = smaller(V::kLanes, c_in - c);
      const auto wr = V::load_some(w_re + c, left), wi = V::load_some(w_im + c, left);
      const float* row = x + c;
      one_step_at_a_time(row, x);
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; n++, row += step) {
        const auto a = V::load(row), b = V::load(row + plane);
        sums[2 * n] = V::plus_product(wr, a, sums[2 * n]);
        sums[2 * n + 1] = V::plus_product(wr, b, sums[2 * n + 1]);
        sums[2 * n] = V::minus_product(wi, b, sums[2 * n]);
        sums[2 * n + 1] = V::plus_product(wi, a, sums[2 * n + 1]);
      }
    }
    w_re += c_in;
    w_im += c_in;
  }
  float y[kSums];
#pragma GCC unroll 2
  for (int i = 0; i < kSums; i += 8) V::store_sums(sums + i, y + i);
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; n++) {
    const float re = spec->gain[0][0] * y[2 * n] + spec->bias[0][0], im = spec->gain[1][0] * y[2 * n + 1] + spec->bias[1][0];
    y_re[2 * (column + n)] = re > 0.0f ? re : spec->slope * re;
    y_im[2 * (column + n)] = im > 0.0f ? im : spec->slope * im;
  }
}

template <class V>
void last(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int first_column, int last_column) {
  constexpr int kColumns = V::kLanes == 16 ? 8 : 4;
  int n = first_column;
  for (; n + kColumns <= last_column; n += kColumns) last_block<V, kColumns>(spec, taps, y_re, y_im, n);
  for (; n < last_column; n++) last_block<V, 1>(spec, taps, y_re, y_im, n);
}

template <class Math>
constexpr Row row_of(const char* name, Format format, int planes, unsigned char zero) {
  return Row{name, format, planes, zero, static_cast<int>(sizeof(typename Math::Element)),
             conv_bytes<Math>, pack_conv<Math>, conv<Math>, cell_bytes<Math>, pack_cell<Math>, cell<Math>,
             dense_bytes<Math>, pack_dense<Math>, dense<Math>, store<Math>, store_row<Math>, change_row<Math>, first<Math>, last<typename Math::V>};
}

}  // namespace
}  // namespace ek
#endif
