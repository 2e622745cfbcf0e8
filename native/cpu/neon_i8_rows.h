// What the two int8 rows of Arm share: everything but how bytes are multiplied and how weights are packed for that.
//
// `Mac` is one way of multiplying: pack_tap and conv_sums belong together, so do pack_gates and gate_sums, pack_dense and dense_sums.
//     kPanel, kColumns    channels and columns of one block of a convolution
//     kInputs             channels of a tap are rounded up to this many,
//     kVectorInputs       and vectors of cells and dense layers to this many; memory behind both is rounded up to 16 and holds zeros
//     kThird              whether a frame has -imag as a third plane
// Activations are within +-127, weights may be -128 in a file that somebody made up.
#ifndef EK_CPU_NEON_I8_ROWS_H
#define EK_CPU_NEON_I8_ROWS_H

#include "neon_common.h"

namespace ek {
namespace {

// ---- convolution; packed: [panel][tap] and then as the Mac likes, 2 * kPanel bytes for every input. If it takes turns, a panel has the sums
// of older and newer frames' weights behind the weights themselves.

template <class Mac>
size_t place_conv(const ConvSpec* spec, char* memory, Conv* conv) {
  Carver carver{memory, 0};
  begin_conv(spec, carver, conv, Mac::kPanel, Mac::kColumns, Mac::kInputs);
  const int panels = rounded(spec->c_out, Mac::kPanel) / Mac::kPanel;
  size_t inputs = 0;
  for (int t = 0; t < spec->n_taps; t++) inputs += rounded(spec->sources[t].c_in, Mac::kInputs);
  if (spec->takes_turns) inputs += inputs / 2;
  int8_t* packed = take<int8_t>(carver, panels * inputs * 2 * Mac::kPanel);
  if (!memory) return carver.used;
  conv->weights = packed;
  const size_t newer = weights_of_half(spec);
  for (int panel = 0; panel < panels; panel++) {
    const auto pack = [&](int n_taps, bool both) {
      size_t at = 0;
      for (int t = 0; t < n_taps; t++) {
        const int c_in = spec->sources[t].c_in;
        packed = Mac::pack_tap(packed, conv->c_in[t], [&](int part, int i, int c) {
          const auto get = [&](size_t from) { return weight_at(spec->q[part], from, spec->c_out, c_in, panel * Mac::kPanel + i, c); };
          return static_cast<int8_t>(get(at) + (both ? get(newer + at) : 0));
        });
        at += static_cast<size_t>(spec->c_out) * c_in;
      }
    };
    pack(spec->n_taps, false);
    if (spec->takes_turns) pack(spec->n_taps / 2, true);
  }
  return carver.used;
}

template <class Mac>
size_t conv_bytes(const ConvSpec* spec) {
  return place_conv<Mac>(spec, nullptr, nullptr);
}

template <class Mac>
void pack_conv(const ConvSpec* spec, void* memory, Conv* conv) {
  place_conv<Mac>(spec, static_cast<char*>(memory), conv);
}

// `half`: bytes of the weights of one frame; `kept`: the block's own part of Out::kept.
template <class Mac, int N, Turn kTurn>
EK_APART void conv_block(const Conv* conv, const Tap* taps, const Out* out, const int8_t* w, size_t half, int32_t* kept, int column, int channel) {
  s32x4 re[Mac::kPanel / 4][N], im[Mac::kPanel / 4][N];
  const auto for_sums = [&](auto each) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
#pragma GCC unroll 2
      for (int m = 0; m < Mac::kPanel / 4; m++) {
        int32_t* at = kept + 8 * (n * (Mac::kPanel / 4) + m);
        each(re[m][n], at);
        each(im[m][n], at + 4);
      }
  };
  const int n_taps = kTurn == EK_PLAIN ? conv->n_taps : conv->n_taps / 2;
  if constexpr (kTurn == EK_PLAIN) Mac::template conv_sums<N>(conv, taps, n_taps, w, column, re, im);
  if constexpr (kTurn == EK_WHOLE) {
    Mac::template conv_sums<N>(conv, taps, n_taps, w + 2 * half, column, re, im);
    for_sums([](s32x4& sum, int32_t* at) { vst1q_s32(at, sum); });
    Mac::template conv_sums<N>(conv, taps + n_taps, n_taps, w, column, re, im);
    for_sums([](s32x4& sum, const int32_t* at) { sum = vsubq_s32(vld1q_s32(at), sum); });
  }
  if constexpr (kTurn == EK_REST) {
    Mac::template conv_sums<N>(conv, taps, n_taps, w + half, column, re, im);
    for_sums([](s32x4& sum, const int32_t* at) { sum = vaddq_s32(vld1q_s32(at), sum); });
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 2
    for (int m = 0; m < Mac::kPanel / 4; m++)
      finish<IntFrame>(conv, out, column + n, channel + 4 * m, vcvtq_f32_s32(re[m][n]), vcvtq_f32_s32(im[m][n]), Mac::kThird);
}

using ConvBlock = void (*)(const Conv*, const Tap*, const Out*, const int8_t* w, size_t half, int32_t* kept, int column, int channel);

template <class Mac, int N>
EK_INLINE ConvBlock block_of(Turn turn) {
  static constexpr ConvBlock kBlocks[] = {conv_block<Mac, N, EK_PLAIN>, conv_block<Mac, N, EK_WHOLE>, conv_block<Mac, N, EK_REST>};
  return kBlocks[turn];
}

template <class Mac>
void conv(const Conv* conv, const Tap* taps, const Out* out, int first_item, int last_item) {
  static_assert(Mac::kColumns == 2 || Mac::kColumns == 4, "the table below");
  const int blocks = rounded(conv->columns, Mac::kColumns) / Mac::kColumns, panels = conv->items / blocks;
  const size_t half = static_cast<size_t>(sum_of(conv->c_in, conv->n_taps / 2)) * 2 * Mac::kPanel;
  const size_t panel_bytes = conv->takes_turns ? 3 * half : static_cast<size_t>(sum_of(conv->c_in, conv->n_taps)) * 2 * Mac::kPanel;
  const Turn turn = out->turn;
  const ConvBlock blocks_of_columns[] = {block_of<Mac, 1>(turn), block_of<Mac, 2>(turn), block_of<Mac, Mac::kColumns == 4 ? 3 : 2>(turn), block_of<Mac, Mac::kColumns>(turn)};
  for (int item = first_item; item < last_item; item++) {
    const int panel = item / blocks, channel = panel * Mac::kPanel, column = item % blocks * Mac::kColumns;
    const int left = conv->columns - column, n = left < Mac::kColumns ? left : Mac::kColumns;
    const int8_t* w = static_cast<const int8_t*>(conv->weights) + panel * panel_bytes;
    int32_t* kept = out->kept ? static_cast<int32_t*>(out->kept) + static_cast<ptrdiff_t>(item) * 2 * Mac::kPanel * Mac::kColumns : nullptr;
    blocks_of_columns[n - 1](conv, taps, out, w, half, kept, column, channel);
    if (panel == panels - 1)
      for (int i = 0; i < n; i++) write_zeros<IntFrame>(out, column + i, channel + Mac::kPanel, conv->c_out, Mac::kThird);
  }
}

// ---- cells; packed: [item][input, then state] and then as the Mac likes, gates * kUnits bytes for every input

template <class Mac>
size_t place_cell(const CellSpec* spec, char* memory, Cell* cell) {
  Carver carver{memory, 0};
  begin_cell(spec, carver, cell, Mac::kVectorInputs);
  const int gates = gates_of(spec->kind), items = rounded(spec->hidden, kUnits) / kUnits, n_x = sum_of(spec->segment, spec->n_segments);
  size_t inputs = rounded(spec->hidden, Mac::kVectorInputs);
  for (int s = 0; s < spec->n_segments; s++) inputs += rounded(spec->segment[s], Mac::kVectorInputs);
  int8_t* packed = take<int8_t>(carver, items * inputs * gates * kUnits);
  if (!memory) return carver.used;
  cell->weights = packed;
  for (int item = 0; item < items; item++) {
    const auto row = [&](int g, int j) { return static_cast<size_t>(g * spec->hidden + item * kUnits + j); };
    const auto is_real = [&](int j) { return item * kUnits + j < spec->hidden; };
    packed = Mac::pack_gates(packed, gates, spec->segment, spec->n_segments,
                             [&](int g, int j, int i) { return is_real(j) ? spec->q_x[row(g, j) * n_x + i] : int8_t{0}; });
    packed = Mac::pack_gates(packed, gates, &spec->hidden, 1,
                             [&](int g, int j, int i) { return is_real(j) ? spec->q_h[row(g, j) * spec->hidden + i] : int8_t{0}; });
  }
  return carver.used;
}

template <class Mac>
size_t cell_bytes(const CellSpec* spec) {
  return place_cell<Mac>(spec, nullptr, nullptr);
}

template <class Mac>
void pack_cell(const CellSpec* spec, void* memory, Cell* cell) {
  place_cell<Mac>(spec, static_cast<char*>(memory), cell);
}

// Integer sums of one item's gates -> f32.
template <int kGates>
EK_INLINE void scale_gates(const s32x4 (&sum)[2][kGates][2], const float* scale, const float* bias, float (&to)[2][4][kUnits]) {
#pragma GCC unroll 2
  for (int k = 0; k < 2; k++)
#pragma GCC unroll 4
    for (int g = 0; g < kGates; g++)
#pragma GCC unroll 2
      for (int m = 0; m < 2; m++) {
        const int at = g * kUnits + 4 * m;
        vst1q_f32(&to[k][g][4 * m], vaddq_f32(vmulq_f32(vcvtq_f32_s32(sum[k][g][m]), vld1q_f32(scale + at)), vld1q_f32(bias + at)));
      }
}

// x[k][s] are n_segments pieces of segment[s] values of input k.
template <class Mac, int kGates>
EK_APART void scaled_gates(const void* const* const (&x)[2], const int* segment, int n_segments, const int8_t* w, const float* scale,
                  const float* bias, float (&to)[2][4][kUnits]) {
  s32x4 sum[2][kGates][2];
  Mac::template gate_sums<kGates>(x, segment, n_segments, w, sum);
  scale_gates<kGates>(sum, scale, bias, to);
}

template <class Mac, int kGates>
void cell_items(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  const void* const state[2] = {run->h_old[0], run->h_old[1]};
  const void* const* const h[2] = {&state[0], &state[1]};
  const void* const* const x[2] = {run->x[0], run->x[1]};
  const size_t n_x = static_cast<size_t>(sum_of(cell->segment, cell->n_segments)) * kGates * kUnits;
  const size_t n_h = static_cast<size_t>(cell->segment[cell->n_segments]) * kGates * kUnits;
  for (int item = first_item; item < last_item; item++) {
    GateSums sums;
    const int8_t* w = static_cast<const int8_t*>(cell->weights) + item * (n_x + n_h);
    const int at = item * kGates * kUnits;
    scaled_gates<Mac, kGates>(x, cell->segment, cell->n_segments, w, cell->scale_x + at, cell->bias_x + at, sums.from_x);
    scaled_gates<Mac, kGates>(h, cell->segment + cell->n_segments, 1, w + n_x, cell->scale_h + at, cell->bias_h + at, sums.from_h);
    pointwise<IntFrame>(cell, run, item, sums);
  }
}

template <class Mac>
void cell(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  if (cell->kind == EK_LSTM) cell_items<Mac, 4>(cell, run, first_item, last_item);
  else cell_items<Mac, 3>(cell, run, first_item, last_item);
}

// ---- dense layers; packed: [16 rows] and then as the Mac likes, 16 bytes for every input

template <class Mac>
size_t place_dense(const DenseSpec* spec, char* memory, Dense* dense) {
  Carver carver{memory, 0};
  const int n = rounded(spec->n, Mac::kVectorInputs);
  float* scale = take<float>(carver, spec->rows);
  float* bias = take<float>(carver, spec->rows);
  copy_padded(spec->scale, spec->rows, scale, spec->rows);
  copy_padded(spec->bias, spec->rows, bias, spec->rows);
  int8_t* packed = take<int8_t>(carver, static_cast<size_t>(spec->rows) * n);
  if (!memory) return carver.used;
  *dense = Dense{spec->rows, n, spec->rows / kLanes, packed, scale, bias};
  for (int row = 0; row < spec->rows; row += kLanes)
    packed = Mac::pack_dense(packed, n, [&](int j, int i) { return i < spec->n ? spec->q[static_cast<size_t>(row + j) * spec->n + i] : int8_t{0}; });
  return carver.used;
}

template <class Mac>
size_t dense_bytes(const DenseSpec* spec) {
  return place_dense<Mac>(spec, nullptr, nullptr);
}

template <class Mac>
void pack_dense(const DenseSpec* spec, void* memory, Dense* dense) {
  place_dense<Mac>(spec, static_cast<char*>(memory), dense);
}

template <class Mac>
void dense(const Dense* dense, const void* x, float* y, int first_item, int last_item) {
  for (int item = first_item; item < last_item; item++) {
    s32x4 sum[4];
    Mac::dense_sums(static_cast<const int8_t*>(x), dense->n, static_cast<const int8_t*>(dense->weights) + static_cast<size_t>(item) * dense->n * kLanes, sum);
    for (int m = 0; m < 4; m++) {
      const int row = item * kLanes + 4 * m;
      vst1q_f32(y + row, vaddq_f32(vmulq_f32(vcvtq_f32_s32(sum[m]), vld1q_f32(dense->scale + row)), vld1q_f32(dense->bias + row)));
    }
  }
}

inline bool change_row(const void* now, const void* before, void* change, int channels, int planes) {
  bool fits = true;
  for (int c = 0; c < channels; c += 4)
    fits &= write_change(static_cast<const int8_t*>(now) + c, static_cast<const int8_t*>(before) + c, static_cast<int8_t*>(change) + c, channels, planes == 3);
  return fits;
}

template <class Mac>
constexpr Row i8_row(const char* name) {
  return Row{name, EK_I8, Mac::kThird ? 3 : 2, 0, 1,
             conv_bytes<Mac>, pack_conv<Mac>, conv<Mac>, cell_bytes<Mac>, pack_cell<Mac>, cell<Mac>,
             dense_bytes<Mac>, pack_dense<Mac>, dense<Mac>, store<IntFrame>, store_row<IntFrame>, change_row, first<IntFrame, Mac::kThird>, last};
}

}  // namespace
}  // namespace ek
#endif
