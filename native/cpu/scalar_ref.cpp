// The scalar rows: the definition that every other row is tested against. Plain loops in the order of the formulas, never optimized.
//
// Numbers: f32 sums in f32. bf16: weights and activations rounded to bf16, half to even; products and sums in f32.
// int8: exact sums in s32, then y = gain * float(sum) + bias with two roundings (this file is compiled with -ffp-contract=off), PReLU,
// q = round_half_even(y * inv_scale) clamped to -127 .. 127; a NaN becomes -127.
#include <cmath>
#include <cstring>

#include "pack.h"

namespace ek {
namespace {

struct F32 {
  using Element = float;
  using Sum = float;
  static constexpr Format kFormat = EK_F32;
  static constexpr const char* kName = "scalar_f32";
  static float value(float x) { return x; }
  static float make(float y, float) { return y; }
};

struct Bf16 {
  using Element = uint16_t;
  using Sum = float;
  static constexpr Format kFormat = EK_BF16;
  static constexpr const char* kName = "scalar_bf16";
  static float value(uint16_t x) {
    const uint32_t bits = uint32_t{x} << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  static uint16_t make(float y, float) {
    uint32_t bits;
    std::memcpy(&bits, &y, 4);
    if (y != y) return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could carry a NaN into infinity
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

struct I8 {
  using Element = int8_t;
  using Sum = int32_t;
  static constexpr Format kFormat = EK_I8;
  static constexpr const char* kName = "scalar_i8";
  static int32_t value(int8_t x) { return x; }
  static int8_t make(float y, float inv_scale) {
    float q = std::nearbyint(y * inv_scale);
    q = q > -127.0f ? q : -127.0f;  // in this order a NaN is caught
    q = q < 127.0f ? q : 127.0f;
    return static_cast<int8_t>(q);
  }
};

// The sum of two weights.
template <class N>
typename N::Element sum_of_weights(const float* w, const int8_t* q, size_t i, size_t k) {
  if constexpr (N::kFormat == EK_I8) {
    (void)w;
    return static_cast<int8_t>(q[i] + q[k]);
  } else {
    (void)q;
    return N::make(w[i] + w[k], 1.0f);
  }
}

template <class N>
typename N::Element weight(const float* w, const int8_t* q, size_t i) {
  if constexpr (N::kFormat == EK_I8) {
    (void)w;
    return q[i];
  } else {
    (void)q;
    return N::make(w[i], 1.0f);
  }
}

float prelu(float y, float slope) { return y > 0.0f ? y : slope * y; }

// False where the change does not fit.
template <class N>
bool write_change(const typename N::Element* now, const typename N::Element* before, typename N::Element* change, int plane, bool gauss) {
  const auto re = N::value(now[0]) - N::value(before[0]), im = N::value(now[plane]) - N::value(before[plane]);
  change[0] = N::make(static_cast<float>(re), 1.0f);
  change[plane] = N::make(static_cast<float>(im), 1.0f);
  if (gauss) change[2 * plane] = N::make(static_cast<float>(re + im), 1.0f);
  return N::kFormat != EK_I8 || (N::value(change[0]) == re && N::value(change[plane]) == im);
}

template <class N>
void write_complex(const Out* out, int column, int channel, float re, float im, float inv_scale, bool gauss) {
  if (out->frame) {
    auto* row = static_cast<typename N::Element*>(out->frame) + static_cast<ptrdiff_t>(column) * out->frame_step;
    row[channel] = N::make(re, inv_scale);
    row[out->channels + channel] = N::make(im, inv_scale);
    if (gauss) row[2 * out->channels + channel] = N::make(re + im, inv_scale);
    if (out->change) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(column) * out->frame_step + channel;
      if (!write_change<N>(row + channel, static_cast<const typename N::Element*>(out->before) + at, static_cast<typename N::Element*>(out->change) + at, out->channels, gauss)) {
        say_beyond(out->beyond);
      }
    }
  }
  if (out->floats) {
    float* row = out->floats + static_cast<ptrdiff_t>(column) * out->floats_step;
    row[channel] = re;
    row[out->channels + channel] = im;
  }
}

// Packed: for every tap real weights [c_out][c_in], then imaginary; c_out rounded, c_in as it is. A layer that takes turns has, behind them,
// the sums of older and newer frames' weights.
template <class N>
size_t place_conv(const ConvSpec* spec, char* memory, Conv* conv) {
  using Element = typename N::Element;
  Carver carver{memory, 0};
  const int c_out = rounded(spec->c_out);
  size_t count = 0;
  for (int t = 0; t < spec->n_taps; t++) count += size_t{2} * c_out * spec->sources[t].c_in;
  if (spec->takes_turns) count += count / 2;
  Element* packed = take<Element>(carver, count);
  float* affine[4];
  for (int i = 0; i < 4; i++) {
    affine[i] = take<float>(carver, c_out);
    copy_padded(i < 2 ? spec->gain[i] : spec->bias[i - 2], spec->c_out, affine[i], c_out);
  }
  if (!memory) return carver.used;

  *conv = Conv{};
  conv->c_out = c_out;
  conv->columns = conv->items = spec->columns;
  conv->n_taps = spec->n_taps;
  conv->weights = packed;
  for (int i = 0; i < 2; i++) conv->gain[i] = affine[i], conv->bias[i] = affine[2 + i];
  conv->slope = spec->slope;
  conv->inv_scale = spec->inv_scale;
  conv->variant = spec->algorithm;
  conv->takes_turns = spec->takes_turns;
  const auto put = [&](int n_taps, auto get) {
    size_t at = 0;
    for (int t = 0; t < n_taps; t++) {
      const int c_in = spec->sources[t].c_in;
      for (int part = 0; part < 2; part++)
        for (int o = 0; o < c_out; o++)
          for (int c = 0; c < c_in; c++) *packed++ = o < spec->c_out ? get(part, at + static_cast<size_t>(o) * c_in + c) : Element{0};
      at += static_cast<size_t>(spec->c_out) * c_in;
    }
  };
  for (int t = 0; t < spec->n_taps; t++) conv->c_in[t] = spec->sources[t].c_in, conv->step[t] = spec->sources[t].step;
  put(spec->n_taps, [&](int part, size_t i) { return weight<N>(spec->w[part], spec->q[part], i); });
  const size_t newer = weights_of_half(spec);
  if (spec->takes_turns) put(spec->n_taps / 2, [&](int part, size_t i) { return sum_of_weights<N>(spec->w[part], spec->q[part], i, newer + i); });
  return carver.used;
}

template <class N>
size_t conv_bytes(const ConvSpec* spec) {
  return place_conv<N>(spec, nullptr, nullptr);
}

template <class N>
void pack_conv(const ConvSpec* spec, void* memory, Conv* conv) {
  place_conv<N>(spec, static_cast<char*>(memory), conv);
}

// Adds the taps' products to one output's sums.
template <class N>
void add_taps(const Conv* conv, const Tap* taps, int n_taps, const typename N::Element* w, int n, int o, typename N::Sum* re, typename N::Sum* im) {
  for (int t = 0; t < n_taps; t++) {
    const int c_in = conv->c_in[t], plane = rounded(c_in);
    const auto* x = static_cast<const typename N::Element*>(taps[t].x) + static_cast<ptrdiff_t>(n) * conv->step[t];
    const auto* w_re = w + static_cast<size_t>(o) * c_in;
    const auto* w_im = w_re + static_cast<size_t>(conv->c_out) * c_in;
    for (int c = 0; c < c_in; c++) {
      const auto xr = N::value(x[c]), xi = N::value(x[plane + c]), wr = N::value(w_re[c]), wi = N::value(w_im[c]);
      *re += wr * xr;
      *re -= wi * xi;
      *im += wr * xi;
      *im += wi * xr;
    }
    w += size_t{2} * conv->c_out * c_in;
  }
}

template <class N>
void conv(const Conv* conv, const Tap* taps, const Out* out, int first_item, int last_item) {
  const auto* weights = static_cast<const typename N::Element*>(conv->weights);
  const int half = conv->n_taps / 2;
  size_t of_half = 0;
  for (int t = 0; t < half; t++) of_half += size_t{2} * conv->c_out * conv->c_in[t];
  for (int n = first_item; n < last_item; n++)
    for (int o = 0; o < conv->c_out; o++) {
      typename N::Sum re = 0, im = 0;
      auto* kept = out->kept ? static_cast<typename N::Sum*>(out->kept) + 2 * (static_cast<ptrdiff_t>(n) * conv->c_out + o) : nullptr;
      if (out->turn == EK_PLAIN) {
        add_taps<N>(conv, taps, conv->n_taps, weights, n, o, &re, &im);
      } else if (out->turn == EK_WHOLE) {
        typename N::Sum older_re = 0, older_im = 0;
        add_taps<N>(conv, taps, half, weights + 2 * of_half, n, o, &re, &im);
        add_taps<N>(conv, taps + half, half, weights, n, o, &older_re, &older_im);
        kept[0] = re, kept[1] = im;
        re -= older_re, im -= older_im;
      } else {
        re = kept[0], im = kept[1];
        add_taps<N>(conv, taps, half, weights + of_half, n, o, &re, &im);
      }
      const float y_re = prelu(conv->gain[0][o] * static_cast<float>(re) + conv->bias[0][o], conv->slope);
      const float y_im = prelu(conv->gain[1][o] * static_cast<float>(im) + conv->bias[1][o], conv->slope);
      write_complex<N>(out, n, o, y_re, y_im, conv->inv_scale, N::kFormat == EK_F32 && conv->variant == EK_GAUSS);
    }
}

// Packed: [gates * hidden][input] and [gates * hidden][hidden], hidden as it is; an item is one hidden unit.
template <class N>
size_t place_cell(const CellSpec* spec, char* memory, Cell* cell) {
  using Element = typename N::Element;
  Carver carver{memory, 0};
  const int rows = (spec->kind == EK_LSTM ? 4 : 3) * spec->hidden, n_x = sum_of(spec->segment, spec->n_segments);
  const size_t count_x = static_cast<size_t>(rows) * n_x, count_h = static_cast<size_t>(rows) * spec->hidden;
  Element* packed = take<Element>(carver, count_x + count_h);
  int* segment = take<int>(carver, spec->n_segments);
  int* hidden = take<int>(carver, 1);
  const float* from[4] = {spec->scale_x, spec->scale_h, spec->bias_x, spec->bias_h};
  float* piece[4];
  for (int i = 0; i < 4; i++) {
    piece[i] = take<float>(carver, rows);
    copy_padded(from[i], rows, piece[i], rows);
  }
  if (!memory) return carver.used;

  for (size_t i = 0; i < count_x; i++) packed[i] = weight<N>(spec->w_x, spec->q_x, i);
  for (size_t i = 0; i < count_h; i++) packed[count_x + i] = weight<N>(spec->w_h, spec->q_h, i);
  for (int s = 0; s < spec->n_segments; s++) segment[s] = spec->segment[s];
  *hidden = spec->hidden;
  *cell = Cell{};
  cell->kind = spec->kind;
  cell->hidden = rounded(spec->hidden);
  cell->n_segments = spec->n_segments;
  cell->segment = segment;
  cell->items = spec->hidden;  // the model's own hidden units; those beyond keep the zeros they were born with
  cell->weights = packed;
  cell->scale_x = piece[0], cell->scale_h = piece[1], cell->bias_x = piece[2], cell->bias_h = piece[3];
  return carver.used;
}

template <class N>
size_t cell_bytes(const CellSpec* spec) {
  return place_cell<N>(spec, nullptr, nullptr);
}

template <class N>
void pack_cell(const CellSpec* spec, void* memory, Cell* cell) {
  place_cell<N>(spec, static_cast<char*>(memory), cell);
}

template <class N>
float scaled(typename N::Sum sum, const float* scale, const float* bias, int row) {
  if constexpr (N::kFormat == EK_I8) return static_cast<float>(sum) * scale[row] + bias[row];
  (void)scale;
  return static_cast<float>(sum) + bias[row];
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

template <class N>
void cell(const Cell* cell, const CellRun* run, int first_item, int last_item) {
  using Element = typename N::Element;
  const int hidden = cell->items, n_x = sum_of(cell->segment, cell->n_segments), gates = cell->kind == EK_LSTM ? 4 : 3;
  const Element* w_x = static_cast<const Element*>(cell->weights);
  const Element* w_h = w_x + static_cast<size_t>(gates) * hidden * n_x;
  for (int k = 0; k < 2; k++)
    for (int u = first_item; u < last_item; u++) {
      float from_x[4], from_h[4];
      for (int g = 0; g < gates; g++) {
        const int row = g * hidden + u;
        typename N::Sum sum_x = 0, sum_h = 0;
        const Element* w = w_x + static_cast<size_t>(row) * n_x;
        for (int s = 0; s < cell->n_segments; s++) {
          const Element* x = static_cast<const Element*>(run->x[k][s]);
          for (int i = 0; i < cell->segment[s]; i++) sum_x += N::value(*w++) * N::value(x[i]);
        }
        const Element* h = static_cast<const Element*>(run->h_old[k]);
        for (int i = 0; i < hidden; i++) sum_h += N::value(w_h[static_cast<size_t>(row) * hidden + i]) * N::value(h[i]);
        from_x[g] = scaled<N>(sum_x, cell->scale_x, cell->bias_x, row);
        from_h[g] = scaled<N>(sum_h, cell->scale_h, cell->bias_h, row);
      }
      float h;
      if (cell->kind == EK_LSTM) {
        const float i = sigmoid(from_x[0] + from_h[0]), f = sigmoid(from_x[1] + from_h[1]);
        const float g = std::tanh(from_x[2] + from_h[2]), o = sigmoid(from_x[3] + from_h[3]);
        const float c = f * run->c[k][u] + i * g;
        run->c[k][u] = c;
        h = o * std::tanh(c);
      } else {
        const float r = sigmoid(from_x[0] + from_h[0]), z = sigmoid(from_x[1] + from_h[1]);
        const float n = std::tanh(from_x[2] + r * from_h[2]);
        h = (1.0f - z) * n + z * run->h_f32_old[k][u];
      }
      run->h_f32[k][u] = h;
      static_cast<Element*>(run->h_new[k])[u] = N::make(h, 127.0f);
    }
}

template <class N>
size_t place_dense(const DenseSpec* spec, char* memory, Dense* dense) {
  using Element = typename N::Element;
  Carver carver{memory, 0};
  const size_t count = static_cast<size_t>(spec->rows) * spec->n;
  Element* packed = take<Element>(carver, count);
  float* scale = take<float>(carver, spec->rows);
  float* bias = take<float>(carver, spec->rows);
  copy_padded(spec->scale, spec->rows, scale, spec->rows);
  copy_padded(spec->bias, spec->rows, bias, spec->rows);
  if (!memory) return carver.used;
  for (size_t i = 0; i < count; i++) packed[i] = weight<N>(spec->w, spec->q, i);
  *dense = Dense{spec->rows, spec->n, spec->rows, packed, scale, bias};
  return carver.used;
}

template <class N>
size_t dense_bytes(const DenseSpec* spec) {
  return place_dense<N>(spec, nullptr, nullptr);
}

template <class N>
void pack_dense(const DenseSpec* spec, void* memory, Dense* dense) {
  place_dense<N>(spec, static_cast<char*>(memory), dense);
}

template <class N>
void dense(const Dense* dense, const void* vector, float* y, int first_item, int last_item) {
  const auto* x = static_cast<const typename N::Element*>(vector);
  for (int row = first_item; row < last_item; row++) {
    const auto* w = static_cast<const typename N::Element*>(dense->weights) + static_cast<size_t>(row) * dense->n;
    typename N::Sum sum = 0;
    for (int i = 0; i < dense->n; i++) sum += N::value(w[i]) * N::value(x[i]);
    y[row] = scaled<N>(sum, dense->scale, dense->bias, row);
  }
}

template <class N>
void store(const float* x, float inv_scale, void* y, int n) {
  for (int i = 0; i < n; i++) static_cast<typename N::Element*>(y)[i] = N::make(x[i], inv_scale);
}

template <class N>
void store_row(const float* re, const float* im, float inv_scale, void* row, int channels, int planes) {
  const Out out{row, nullptr, 0, 0, channels};
  for (int c = 0; c < channels; c++) write_complex<N>(&out, 0, c, re[c], im[c], inv_scale, planes == 3);
}

template <class N>
bool change_row(const void* now, const void* before, void* change, int channels, int planes) {
  using Element = typename N::Element;
  bool fits = true;
  for (int c = 0; c < channels; c++)
    fits &= write_change<N>(static_cast<const Element*>(now) + c, static_cast<const Element*>(before) + c, static_cast<Element*>(change) + c, channels, planes == 3);
  return fits;
}

// Complex sum over the taps of one output; weights of every tap [c_out][c_in].
void sum_taps(const ConvSpec* spec, const Tap* taps, int column, int o, int plane_of_one, float* re, float* im) {
  size_t at = 0;
  *re = *im = 0.0f;
  for (int t = 0; t < spec->n_taps; t++) {
    const int c_in = spec->sources[t].c_in, plane = plane_of_one ? plane_of_one : rounded(c_in);
    const float* x = static_cast<const float*>(taps[t].x) + static_cast<ptrdiff_t>(column) * spec->sources[t].step;
    for (int c = 0; c < c_in; c++) {
      const size_t i = at + static_cast<size_t>(o) * c_in + c;
      *re += spec->w[0][i] * x[c];
      *re -= spec->w[1][i] * x[plane + c];
      *im += spec->w[0][i] * x[plane + c];
      *im += spec->w[1][i] * x[c];
    }
    at += static_cast<size_t>(spec->c_out) * c_in;
  }
}

template <class N>
void first(const ConvSpec* spec, const Tap* taps, const Out* out, int first_column, int last_column) {
  for (int n = first_column; n < last_column; n++)
    for (int o = 0; o < spec->c_out; o++) {
      float re, im;
      sum_taps(spec, taps, n, o, 1, &re, &im);
      re = prelu(spec->gain[0][o] * re + spec->bias[0][o], spec->slope);
      im = prelu(spec->gain[1][o] * im + spec->bias[1][o], spec->slope);
      write_complex<N>(out, n, o, re, im, spec->inv_scale, N::kFormat == EK_F32 && spec->algorithm == EK_GAUSS);
    }
}

void last(const ConvSpec* spec, const Tap* taps, float* y_re, float* y_im, int first_column, int last_column) {
  for (int n = first_column; n < last_column; n++) {
    float re, im;
    sum_taps(spec, taps, n, 0, 0, &re, &im);
    y_re[2 * n] = prelu(spec->gain[0][0] * re + spec->bias[0][0], spec->slope);
    y_im[2 * n] = prelu(spec->gain[1][0] * im + spec->bias[1][0], spec->slope);
  }
}

template <class N>
constexpr Row row() {
  return Row{N::kName, N::kFormat, 2, 0, static_cast<int>(sizeof(typename N::Element)),
             conv_bytes<N>, pack_conv<N>, conv<N>, cell_bytes<N>, pack_cell<N>, cell<N>,
             dense_bytes<N>, pack_dense<N>, dense<N>, store<N>, store_row<N>, change_row<N>, first<N>, last};
}

}  // namespace

extern const Row scalar_f32 = row<F32>();
extern const Row scalar_bf16 = row<Bf16>();
extern const Row scalar_i8 = row<I8>();

}  // namespace ek
