// Compares every row of kernels that this build holds and this CPU can run with the scalar row, over DCCRN's shapes and random ones around
// vector widths. Buffers have exactly the documented size, so that AddressSanitizer sees a read too far.
//
//     rows [--rounds N] [--seed N] [--list] [row names ...]       exit status 1: a row differs; 2: a named row cannot run here
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "../core/kernels.h"

using namespace ek;

namespace {

uint64_t g_state = 1;
uint32_t random_bits() {
  g_state = g_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(g_state >> 32);
}
int between(int low, int high) { return low + static_cast<int>(random_bits() % static_cast<uint32_t>(high - low + 1)); }
float uniform() { return static_cast<float>(static_cast<int32_t>(random_bits())) * (1.0f / 2147483648.0f); }

long g_checked = 0, g_failed = 0, g_int8 = 0, g_int8_off = 0;
std::string g_where;
void fail(const char* what, double got, double want, double allowed) {
  if (g_failed++ < 10) std::printf("FAIL %s: %s: got %.9g, want %.9g, allowed %.3g\n", g_where.c_str(), what, got, want, allowed);
}
void close(const char* what, double got, double want, double allowed) {
  g_checked++;
  if (!(std::fabs(got - want) <= allowed)) fail(what, got, want, allowed);
}

std::vector<float> random_vector(size_t n, float scale) {
  std::vector<float> x(n);
  for (float& v : x) v = scale * uniform();
  return x;
}

// Memory of exactly `bytes`, 64-byte aligned.
struct Buffer {
  explicit Buffer(size_t bytes, int fill = 0) : size(bytes) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 64, bytes ? bytes : 1)) std::abort();
    std::memset(data, fill, bytes);
  }
  Buffer(Buffer&& other) noexcept : data(other.data), size(other.size) { other.data = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  char* data;
  size_t size;
};

double decode(const Row* row, const void* base, ptrdiff_t i) {
  if (row->format == EK_F32) return static_cast<const float*>(base)[i];
  if (row->format == EK_I8 && row->element_bytes == 2) return static_cast<const int16_t*>(base)[i];
  if (row->format == EK_I8) return static_cast<int8_t>(static_cast<const uint8_t*>(base)[i] - row->zero);
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(base)[i]} << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

const Row* scalar_of(const Row* row) { return row->format == EK_F32 ? &scalar_f32 : row->format == EK_BF16 ? &scalar_bf16 : &scalar_i8; }

// A frame of `channels` (as allocated) in `planes`, two frequencies of padding on either side.
struct Frame {
  Frame(int element_bytes, int zero, int bins, int channels_, int planes)
      : bytes(element_bytes), channels(channels_), step(planes * channels_), memory(static_cast<size_t>(bins + 2 * kPad) * step * bytes, zero) {}
  char* at(int f) const { return memory.data + static_cast<ptrdiff_t>(f + kPad) * step * bytes; }
  int bytes, channels, step;
  Buffer memory;
};

// What one number in a row's format may differ by when the float behind it may differ by `allowed`.
void compare_element(const Row* row, const char* what, double got, double want, double allowed, bool exact = false) {
  if (row->format != EK_I8) return close(what, got, want, row->format == EK_BF16 ? allowed + std::fabs(want) / 128 : allowed);
  g_int8++;
  g_checked++;
  if (got != want) g_int8_off++;
  if (!(std::fabs(got - want) <= (exact ? 0 : 1))) fail(what, got, want, exact ? 0 : 1);
}

// Runs the items in two pieces, the later one first: work that threads share must not depend on order.
template <class Call>
void in_two_pieces(int items, Call call) {
  const int cut = between(0, items);
  call(cut, items);
  call(0, cut);
}

// A layer's geometry. `first_row`: which frequency of its frame a tap's column 0 reads.
struct Shape {
  std::vector<int> frame_of, first_row;  // of every tap
  std::vector<int> channels_of;          // of every frame
  int bins, stride, c_out, columns;
};

// One source or two (c_b > 0), each as an older and a newer frame.
Shape layer(int c_a, int c_b, int c_out, int columns, int freq_taps, int stride, int first_row) {
  Shape shape{{}, {}, {}, stride * columns, stride, c_out, columns};
  for (int time = 0; time < 2; time++)
    for (int source = 0; source < (c_b ? 2 : 1); source++) {
      for (int k = 0; k < freq_taps; k++) {
        shape.frame_of.push_back(static_cast<int>(shape.channels_of.size()));
        shape.first_row.push_back(first_row + k);
      }
      shape.channels_of.push_back(source ? c_b : c_a);
    }
  return shape;
}
Shape encoder(int c_in, int c_out, int columns) { return layer(c_in, 0, c_out, columns, 5, 2, -2); }
Shape phase(int c_a, int c_b, int c_out, int columns, bool odd) { return layer(c_a, c_b, c_out, columns, odd ? 2 : 3, 1, odd ? 0 : -1); }

enum Kind { CONV, FIRST, LAST };

// A layer in one row's format: frames, packed weights, outputs.
struct Side {
  const Row* row;
  std::vector<Frame> frames;
  std::vector<Source> sources;
  std::vector<Tap> taps;
  std::vector<Frame> out;  // of the row's format, then of floats
};

void test_conv(const Row* row, const Shape& shape, Algorithm algorithm, Kind kind) {
  const bool gauss = algorithm == EK_GAUSS, exact = row->format == EK_I8 && kind == CONV;
  const int n_taps = static_cast<int>(shape.frame_of.size()), c_out = shape.c_out, columns = shape.columns;
  const int interleave = between(1, 2);  // phases write every other row
  Side sides[2] = {{scalar_of(row), {}, {}, {}, {}}, {row, {}, {}, {}, {}}};

  for (Side& side : sides) {
    const bool floats = kind != CONV;
    const int bytes = floats ? 4 : side.row->element_bytes, planes = floats ? 2 : gauss ? 3 : side.row->planes;
    for (int c : shape.channels_of)
      side.frames.emplace_back(bytes, floats ? 0 : side.row->zero, shape.bins, kind == FIRST ? 1 : rounded(c), planes);
    for (int t = 0; t < n_taps; t++) {
      const Frame& frame = side.frames[shape.frame_of[t]];
      side.sources.push_back(Source{shape.channels_of[shape.frame_of[t]], shape.stride * frame.step});
      side.taps.push_back(Tap{frame.at(shape.first_row[t])});
    }
    const int out_planes = gauss ? 3 : side.row->planes;
    side.out.emplace_back(side.row->element_bytes, side.row->zero, columns * interleave, rounded(c_out), out_planes);
    side.out.emplace_back(4, 0, columns * interleave, rounded(c_out), 2);
  }

  // The same numbers in both formats, zeros in the padding.
  for (size_t f = 0; f < shape.channels_of.size(); f++) {
    const int c = shape.channels_of[f], wide = rounded(c);
    for (int bin = 0; bin < shape.bins; bin++) {
      std::vector<float> re(wide, 0.0f), im(wide, 0.0f);
      for (int i = 0; i < c; i++) re[i] = uniform(), im[i] = uniform();
      for (Side& side : sides) {
        Frame& frame = side.frames[f];
        if (kind == CONV) {
          side.row->store_row(re.data(), im.data(), 127.0f, frame.at(bin), wide, frame.step / wide);
        } else {
          std::memcpy(frame.at(bin), re.data(), frame.channels * sizeof(float));
          std::memcpy(frame.at(bin) + frame.channels * sizeof(float), im.data(), frame.channels * sizeof(float));
        }
      }
    }
  }

  std::vector<float> w[2];
  std::vector<int8_t> q[2];
  std::vector<float> affine[4];
  size_t inputs = 0;
  for (int t = 0; t < n_taps; t++) inputs += shape.channels_of[shape.frame_of[t]];
  const float per_sum = (exact ? 1.0f / (127 * 127) : 1.0f) / std::sqrt(static_cast<float>(inputs));
  for (int part = 0; part < 2; part++) {
    for (size_t i = 0; i < inputs * c_out; i++) {
      w[part].push_back(uniform());
      q[part].push_back(static_cast<int8_t>(between(-127, 127)));
    }
    for (int o = 0; o < c_out; o++) affine[part].push_back(uniform() * per_sum), affine[2 + part].push_back(0.1f * uniform());
  }
  for (int part = 0; part < 2; part++) w[part].shrink_to_fit(), q[part].shrink_to_fit(), affine[part].shrink_to_fit(), affine[2 + part].shrink_to_fit();
  ConvSpec spec{};
  spec.c_out = c_out, spec.columns = columns, spec.n_taps = n_taps, spec.algorithm = algorithm;
  for (int part = 0; part < 2; part++) {
    spec.w[part] = w[part].data(), spec.q[part] = row->format == EK_I8 && kind == CONV ? q[part].data() : nullptr;
    spec.gain[part] = affine[part].data(), spec.bias[part] = affine[2 + part].data();
  }
  const float slopes[] = {0.25f, 1.0f, -0.5f, 1.5f, 0.0f};
  spec.slope = slopes[between(0, 4)];
  spec.inv_scale = uniform() * 40 + 80;  // some outputs saturate
  const bool with_frame = between(0, 3) != 0, with_floats = !with_frame || between(0, 1);

  std::vector<float> last_re[2], last_im[2];
  for (int s = 0; s < 2; s++) {
    Side& side = sides[s];
    spec.sources = side.sources.data();
    Frame &frame = side.out[0], &floats = side.out[1];
    const Out out{with_frame ? frame.at(0) : nullptr, with_floats ? reinterpret_cast<float*>(floats.at(0)) : nullptr,
                  frame.step * interleave, floats.step * interleave, rounded(c_out)};
    if (kind == CONV) {
      const size_t bytes = side.row->conv_bytes(&spec);
      Buffer memory(bytes, 0x55);
      Conv conv;
      side.row->pack_conv(&spec, memory.data, &conv);
      in_two_pieces(conv.items, [&](int from, int to) { side.row->conv(&conv, side.taps.data(), &out, from, to); });
    } else if (kind == FIRST) {
      in_two_pieces(columns, [&](int from, int to) { side.row->first(&spec, side.taps.data(), &out, from, to); });
    } else {
      last_re[s].assign(2 * columns - 1, 7.0f), last_im[s].assign(2 * columns - 1, 7.0f);
      in_two_pieces(columns, [&](int from, int to) { side.row->last(&spec, side.taps.data(), last_re[s].data(), last_im[s].data(), from, to); });
    }
  }

  // The largest sum of magnitudes that one output can have, in units of y: what f32 rounding is measured against.
  const float largest = static_cast<float>(2.0 * inputs) * (exact ? 127 * 127 : 1) * per_sum * std::fmax(1.0f, std::fabs(spec.slope));
  const double allowed = exact ? 0 : 3e-7 * largest + 1e-6;  // sums average a quarter of it; 1e-5 of their magnitudes would be 2.5e-6
  if (kind == LAST) {
    for (int i = 0; i < 2 * columns - 1; i++) {
      close("re", last_re[1][i], last_re[0][i], allowed);
      close("im", last_im[1][i], last_im[0][i], allowed);
    }
    return;
  }
  for (int bin = -kPad; bin < columns * interleave + kPad; bin++)
    for (int c = 0; c < rounded(c_out); c++) {
      const ptrdiff_t re = c, im = rounded(c_out) + c, third = 2 * rounded(c_out) + c;
      double got[3], want[2];
      for (int part = 0; part < 2; part++) {
        const ptrdiff_t at = part ? im : re;
        got[part] = decode(row, sides[1].out[0].at(bin), at);
        want[part] = decode(sides[0].row, sides[0].out[0].at(bin), at);
        compare_element(row, part ? "im" : "re", got[part], want[part], allowed, exact);
        const auto* floats = reinterpret_cast<const float*>(sides[1].out[1].at(bin));
        close(part ? "float im" : "float re", floats[at], reinterpret_cast<const float*>(sides[0].out[1].at(bin))[at], allowed);
      }
      if (sides[1].out[0].step == 2 * rounded(c_out)) continue;
      got[2] = decode(row, sides[1].out[0].at(bin), third);
      close("third plane", got[2], gauss ? got[0] + got[1] : -got[1], 1e-6);
    }
}

// Integers for the weights of a layer that takes turns: older, then newer ones, whose sums are integers of eight bits too.
std::vector<int8_t> random_neighbours(size_t n) {
  std::vector<int8_t> q(n);
  for (size_t i = 0; i < n / 2; i++) {
    const int older = between(-127, 127), sum = between(-127, 127), newer = sum - older;
    q[i] = static_cast<int8_t>(older), q[n / 2 + i] = static_cast<int8_t>(newer > 127 ? 127 : newer < -127 ? -127 : newer);
  }
  return q;
}

// Two steps of a layer that takes turns, against the scalar row's same turns, and in f32 and int8 against the plain form of its definition.
void test_turns(const Row* row, const Shape& shape, Algorithm algorithm) {
  const bool gauss = algorithm == EK_GAUSS, is_int8 = row->format == EK_I8;
  const int n_taps = static_cast<int>(shape.frame_of.size()), half = n_taps / 2, n_sources = static_cast<int>(shape.channels_of.size()) / 2;
  const int c_out = shape.c_out, columns = shape.columns, wide_out = rounded(c_out), interleave = between(1, 2);

  std::vector<float> w[2], affine[4];
  size_t inputs = 0;
  for (int t = 0; t < n_taps; t++) inputs += static_cast<size_t>(shape.channels_of[shape.frame_of[t]]);
  // Inputs whose changes fit int8, outputs some of whose changes do not.
  const float in_scale = is_int8 ? 63.0f : 1.0f;
  const float per_sum = (is_int8 ? 0.5f / (127 * 63) : 1.0f) / std::sqrt(static_cast<float>(inputs));
  std::vector<int8_t> q[2];
  for (int part = 0; part < 2; part++) {
    w[part] = random_vector(inputs * static_cast<size_t>(c_out), 1.0f);
    q[part] = random_neighbours(inputs * static_cast<size_t>(c_out));
    affine[part] = random_vector(c_out, per_sum), affine[2 + part] = random_vector(c_out, 0.1f);
  }
  ConvSpec spec{};
  spec.c_out = c_out, spec.columns = columns, spec.n_taps = n_taps, spec.algorithm = algorithm, spec.slope = 0.25f, spec.inv_scale = is_int8 ? 110.0f : 1.0f;
  for (int part = 0; part < 2; part++) spec.w[part] = w[part].data(), spec.q[part] = is_int8 ? q[part].data() : nullptr, spec.gain[part] = affine[part].data(), spec.bias[part] = affine[2 + part].data();

  // Three frames of every source, and the output's two besides one before them.
  std::vector<std::vector<float>> numbers;
  for (int f = 0; f < 3 * n_sources; f++) numbers.push_back(random_vector(static_cast<size_t>(2 * shape.bins * rounded(shape.channels_of[f % n_sources])), 1.0f));
  const auto first_out = random_vector(static_cast<size_t>(2 * columns * interleave * wide_out), 1.0f);

  enum { TURNS, REFERENCE, PLAIN };
  std::vector<double> y[3], change[3];
  unsigned char beyond[3][3] = {};
  for (int way : {TURNS, REFERENCE, PLAIN}) {
    const Row* by = way == TURNS ? row : scalar_of(row);
    const int planes = gauss ? 3 : by->planes;
    spec.takes_turns = way != PLAIN;
    std::vector<Frame> frames, changes, out, out_change;
    for (int f = 0; f < 3 * n_sources; f++) {
      const int c = shape.channels_of[f % n_sources], wide = rounded(c);
      frames.emplace_back(by->element_bytes, by->zero, shape.bins, wide, planes);
      changes.emplace_back(by->element_bytes, by->zero, shape.bins, wide, planes);
      for (int bin = 0; bin < shape.bins; bin++) {
        std::vector<float> part[2];
        for (int p = 0; p < 2; p++) {
          const float* from = &numbers[f][static_cast<size_t>((2 * bin + p) * wide)];
          part[p].assign(from, from + wide);
          for (int i = c; i < wide; i++) part[p][i] = 0.0f;
        }
        by->store_row(part[0].data(), part[1].data(), in_scale, frames[f].at(bin), wide, planes);
        if (f >= n_sources && !by->change_row(frames[f].at(bin), frames[f - n_sources].at(bin), changes[f].at(bin), wide, planes)) fail("a change that fits", 0, 1, 0);
      }
    }
    for (int f = 0; f < 3; f++) {
      out.emplace_back(by->element_bytes, by->zero, columns * interleave, wide_out, planes);
      out_change.emplace_back(by->element_bytes, by->zero, columns * interleave, wide_out, planes);
    }
    for (int bin = 0; bin < columns * interleave; bin++) {
      const float* from = &first_out[static_cast<size_t>(2 * bin * wide_out)];
      by->store_row(from, from + wide_out, spec.inv_scale, out[0].at(bin), wide_out, planes);
    }
    std::vector<Source> sources;
    for (int t = 0; t < n_taps; t++) sources.push_back(Source{shape.channels_of[shape.frame_of[t]], shape.stride * frames[shape.frame_of[t] % n_sources].step});
    spec.sources = sources.data();
    Buffer memory(by->conv_bytes(&spec), 0x55), kept(kSumBytes * kept_sums(c_out, columns), 0x55);
    Conv conv;
    by->pack_conv(&spec, memory.data, &conv);
    for (int time = 1; time <= 2; time++) {
      const auto frame = [&](std::vector<Frame>& from, int t, int when) { return Tap{from[when * n_sources + shape.frame_of[t] % n_sources].at(shape.first_row[t])}; };
      std::vector<Tap> taps;
      for (int t = 0; t < n_taps; t++) {
        if (way == PLAIN) taps.push_back(frame(frames, t, t < half ? time - 1 : time));
        else if (time == 1) taps.push_back(t < half ? frame(frames, t, time) : frame(changes, t, time));
        else if (t < half) taps.push_back(frame(changes, t, time));
      }
      Out to{};
      to.frame = out[time].at(0), to.frame_step = out[time].step * interleave, to.channels = wide_out;
      if (way != PLAIN) {
        to.turn = time == 1 ? EK_WHOLE : EK_REST, to.kept = kept.data;
        to.change = out_change[time].at(0), to.before = out[time - 1].at(0), to.beyond = &beyond[way][time];
      }
      in_two_pieces(conv.items, [&](int from, int end) { by->conv(&conv, taps.data(), &to, from, end); });
    }
    for (int time = 1; time <= 2; time++)
      for (int bin = -kPad; bin < columns * interleave + kPad; bin++)
        for (int i = 0; i < 2 * wide_out; i++) {
          y[way].push_back(decode(by, out[time].at(bin), i));
          change[way].push_back(decode(by, out_change[time].at(bin), i));
        }
    if (way == TURNS && planes == 3)  // the third plane follows from the other two
      for (int bin = 0; bin < columns * interleave; bin += interleave)
        for (int c = 0; c < wide_out; c++) {
          const auto at = [&](int plane) { return decode(by, out_change[2].at(bin), plane * wide_out + c); };
          close("third plane of a change", at(2), gauss ? at(0) + at(1) : -at(1), 1e-6);
        }
  }
  const double largest = 2.0 * static_cast<double>(inputs) * per_sum, allowed = 1e-6 * largest + 2e-6;
  const bool is_wide = is_int8 && row->element_bytes == 2;  // 16 bits hold any change
  for (int time = 1; time <= 2; time++) close("beyond", beyond[TURNS][time], is_wide ? 0 : beyond[REFERENCE][time], 0);
  for (size_t i = 0; i < y[TURNS].size(); i++) {
    compare_element(row, "y of a turn", y[TURNS][i], y[REFERENCE][i], allowed, is_int8);
    if (is_int8) compare_element(row, "y of a turn, plain", y[TURNS][i], y[PLAIN][i], 0, true);
    // A change of bf16 is the difference of two numbers that may each be rounded to their neighbour.
    const double held = is_wide ? std::fmin(std::fmax(change[TURNS][i], -127), 127) : change[TURNS][i];
    compare_element(row, "change", held, change[REFERENCE][i], allowed + (row->format == EK_BF16 ? 0.04 : 0), is_int8);
    if (row->format == EK_F32) close("y of a turn, plain", y[TURNS][i], y[PLAIN][i], 2 * allowed);
  }
}

// One vector in a row's format, exactly rounded(n) elements.
Buffer vector_of(const Row* row, const std::vector<float>& x) {
  std::vector<float> padded(rounded(static_cast<int>(x.size())), 0.0f);
  std::copy(x.begin(), x.end(), padded.begin());
  Buffer memory(padded.size() * row->element_bytes);
  row->store(padded.data(), 127.0f, memory.data, static_cast<int>(padded.size()));
  return memory;
}

std::vector<int8_t> random_int8(size_t n) {
  std::vector<int8_t> x(n);
  for (int8_t& v : x) v = static_cast<int8_t>(between(-127, 127));
  return x;
}

void test_cell(const Row* row, CellKind kind, int hidden, const std::vector<int>& segments) {
  const Row* rows[2] = {scalar_of(row), row};
  const int gates = kind == EK_LSTM ? 4 : 3, wide = rounded(hidden);
  int n = 0;
  for (int s : segments) n += s;
  const size_t count = static_cast<size_t>(gates) * hidden;
  const auto w_x = random_vector(count * n, 2.0f / std::sqrt(n)), w_h = random_vector(count * hidden, 2.0f / std::sqrt(hidden));
  const auto q_x = random_int8(count * n), q_h = random_int8(count * hidden);
  const auto scale_x = random_vector(count, 2e-4f / std::sqrt(n)), scale_h = random_vector(count, 2e-4f / std::sqrt(hidden));
  const auto b_x = random_vector(count, 1.0f), b_h = random_vector(count, 1.0f);
  CellSpec spec{kind, hidden, static_cast<int>(segments.size()), segments.data(), w_x.data(), w_h.data(), nullptr, nullptr,
                scale_x.data(), scale_h.data(), b_x.data(), b_h.data()};
  if (row->format == EK_I8) spec.q_x = q_x.data(), spec.q_h = q_h.data();

  std::vector<std::vector<float>> x[2];
  std::vector<float> h[2], c[2], h_now[2][2], c_now[2][2];
  for (int k = 0; k < 2; k++) {
    for (int s : segments) x[k].push_back(random_vector(s, 1.0f));
    h[k] = random_vector(hidden, 1.0f), c[k] = random_vector(hidden, 2.0f);
    h[k].resize(wide, 0.0f), c[k].resize(wide, 0.0f);
    h[k].shrink_to_fit(), c[k].shrink_to_fit();
  }
  std::vector<Buffer> h_new[2];
  for (int side = 0; side < 2; side++) {
    Buffer memory(rows[side]->cell_bytes(&spec), 0x55);
    Cell cell;
    rows[side]->pack_cell(&spec, memory.data, &cell);
    CellRun run{};
    std::vector<Buffer> kept;
    std::vector<const void*> pointers[2];
    for (int k = 0; k < 2; k++) {
      for (const auto& piece : x[k]) {
        kept.push_back(vector_of(rows[side], piece));
        pointers[k].push_back(kept.back().data);
      }
      kept.push_back(vector_of(rows[side], h[k]));
      run.h_old[k] = kept.back().data;
      h_new[side].emplace_back(static_cast<size_t>(wide) * rows[side]->element_bytes, rows[side]->zero);
      h_now[side][k].assign(wide, 0.0f), c_now[side][k] = c[k];
    }
    for (int k = 0; k < 2; k++) {
      run.x[k] = pointers[k].data();
      run.h_new[k] = h_new[side][k].data;
      run.h_f32_old[k] = h[k].data();
      run.h_f32[k] = h_now[side][k].data();
      run.c[k] = kind == EK_LSTM ? c_now[side][k].data() : nullptr;
    }
    in_two_pieces(cell.items, [&](int from, int to) { rows[side]->cell(&cell, &run, from, to); });
  }
  // int8 sums are exact: only exp differs. f32: sums of magnitudes are around sqrt(n) here, gates' slopes at most 1.
  const double allowed = row->format == EK_I8 ? 3e-6 : 3e-6 + 1e-6 * std::sqrt(static_cast<double>(n + hidden));
  for (int k = 0; k < 2; k++)
    for (int u = 0; u < wide; u++) {
      close("h", h_now[1][k][u], h_now[0][k][u], allowed);
      close("c", c_now[1][k][u], c_now[0][k][u], 2 * allowed);
      compare_element(row, "stored h", decode(row, h_new[1][k].data, u), decode(rows[0], h_new[0][k].data, u), allowed);
    }
}

void test_dense(const Row* row, int n_rows, int n) {
  const Row* rows[2] = {scalar_of(row), row};
  const size_t count = static_cast<size_t>(n_rows) * n;
  const auto w = random_vector(count, 1.0f), scale = random_vector(n_rows, 1e-4f), bias = random_vector(n_rows, 1.0f), x = random_vector(n, 1.0f);
  const auto q = random_int8(count);
  const DenseSpec spec{n_rows, n, w.data(), row->format == EK_I8 ? q.data() : nullptr, scale.data(), bias.data()};
  std::vector<float> y[2];
  for (int side = 0; side < 2; side++) {
    Buffer memory(rows[side]->dense_bytes(&spec), 0x55), vector = vector_of(rows[side], x);
    Dense dense;
    rows[side]->pack_dense(&spec, memory.data, &dense);
    y[side].assign(n_rows, 7.0f);
    in_two_pieces(dense.items, [&](int from, int to) { rows[side]->dense(&dense, vector.data, y[side].data(), from, to); });
  }
  for (int r = 0; r < n_rows; r++) close("y", y[1][r], y[0][r], row->format == EK_I8 ? 0 : 2e-6 * n + 1e-6);
}

void test_store(const Row* row, int n) {
  const Row* scalar = scalar_of(row);
  std::vector<float> x = random_vector(n, 1.5f);
  const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-30f, 3e38f, -3e38f, 0.5f / 127, 1.5f / 127, 2.5f / 127, -126.5f / 127};
  for (float v : odd) x[between(0, n - 1)] = v;
  Buffer got(static_cast<size_t>(n) * row->element_bytes), want(static_cast<size_t>(n) * row->element_bytes);
  row->store(x.data(), 127.0f, got.data, n);
  scalar->store(x.data(), 127.0f, want.data, n);
  for (int i = 0; i < n; i++) {
    const double a = decode(row, got.data, i), b = decode(scalar, want.data, i);
    g_checked++;
    if (!(a == b || (a != a && b != b))) fail("store", a, b, 0);
  }
}

void test_row(const Row* row, int rounds) {
  auto conv = [&](const char* name, const Shape& shape, Algorithm algorithm = EK_FOUR_MULT, Kind kind = CONV, bool turns = false) {
    g_where = std::string(row->name) + " " + name + (algorithm == EK_GAUSS ? " gauss" : "") + (turns ? " in turns" : "") + " c_in";
    for (int c : shape.channels_of) g_where += " " + std::to_string(c);
    g_where += " c_out " + std::to_string(shape.c_out) + " columns " + std::to_string(shape.columns) + " stride " + std::to_string(shape.stride);
    if (turns) return row->change_row ? test_turns(row, shape, algorithm) : void();
    test_conv(row, shape, algorithm, kind);
  };
  const Algorithm algorithms[] = {EK_FOUR_MULT, EK_GAUSS};
  const int n_algorithms = row->format == EK_F32 ? 2 : 1;
  // DCCRN's own shapes, full and half width.
  for (int half = 1; half <= 2; half++) {
    const int c[] = {1, 16 / half, 32 / half, 64 / half, 128 / half, 128 / half, 128 / half};
    for (int a = 0; a < n_algorithms; a++) {
      conv("first", encoder(1, c[1], 128), algorithms[a], FIRST);
      for (bool turns : {false, true}) {
        for (int i = 1; i < 6; i++) conv("encoder", encoder(c[i], c[i + 1], 128 >> i), algorithms[a], CONV, turns);
        for (int j = 0; j < 5; j++)
          for (int odd = 0; odd < 2; odd++) conv("decoder", phase(c[6 - j], c[6 - j], c[5 - j], 4 << j, odd), algorithms[a], CONV, turns);
      }
    }
    for (int odd = 0; odd < 2; odd++) conv("last", phase(c[1], c[1], 1, 128, odd), EK_FOUR_MULT, LAST);
    for (CellKind kind : {EK_LSTM, EK_GRU}) {
      g_where = std::string(row->name) + " cell of DCCRN";
      test_cell(row, kind, 128 / half, std::vector<int>(4, c[6]));
      test_cell(row, kind, 128 / half, {128 / half});
    }
    g_where = std::string(row->name) + " dense of DCCRN";
    test_dense(row, 4 * rounded(c[6]), 128 / half);
  }
  // Around vector widths, and odd widths as pruning leaves them.
  auto channels = [] {
    const int near[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65};
    return between(0, 2) ? near[between(0, 19)] : between(1, 100);
  };
  for (int round = 0; round < rounds; round++) {
    const Algorithm algorithm = algorithms[between(0, n_algorithms - 1)];
    const int columns = between(1, 35);
    conv("random encoder", encoder(channels(), channels(), columns), algorithm);
    conv("random decoder", phase(channels(), channels(), channels(), columns, between(0, 1)), algorithm);
    conv("random taps", layer(channels(), between(0, 1) ? channels() : 0, channels(), columns, between(1, 3), between(1, 3), between(-2, 0)), algorithm);
    conv("random encoder", encoder(channels(), channels(), columns), algorithm, CONV, true);
    conv("random decoder", phase(channels(), channels(), channels(), columns, between(0, 1)), algorithm, CONV, true);
    conv("random first", encoder(1, channels(), columns), algorithm, FIRST);
    conv("random last", phase(channels(), channels(), 1, columns, between(0, 1)), EK_FOUR_MULT, LAST);
    std::vector<int> segments;
    for (int s = between(1, 20); s > 0; s--) segments.push_back(between(1, 40));
    const CellKind kind = between(0, 1) ? EK_LSTM : EK_GRU;
    const int hidden = channels();
    g_where = std::string(row->name) + (kind == EK_LSTM ? " random LSTM " : " random GRU ") + std::to_string(hidden);
    test_cell(row, kind, hidden, segments);
    g_where = std::string(row->name) + " random dense";
    test_dense(row, kLanes * between(1, 20), channels());
    g_where = std::string(row->name) + " store";
    test_store(row, kLanes * between(1, 9));
  }
}

struct Candidate {
  const Row* row;
  bool runs_here;
};

std::vector<Candidate> candidates() {
  std::vector<Candidate> rows = {{&scalar_f32, true}, {&scalar_bf16, true}, {&scalar_i8, true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  rows.push_back({&avx2_f32, avx2});
  rows.push_back({&avx2_i8, avx2});
  rows.push_back({&avx2_vnni_i8, avx2 && __builtin_cpu_supports("avxvnni")});
  rows.push_back({&avx512_f32, avx512});
  rows.push_back({&avx512_bf16, avx512 && __builtin_cpu_supports("avx512bf16")});
  rows.push_back({&avx512_i8, avx512 && __builtin_cpu_supports("avx512vnni")});
#elif defined(__aarch64__)
  rows.push_back({&neon_f32, true});
  rows.push_back({&neon_i8, true});
  rows.push_back({&neon_dotprod_i8, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0});
#endif
  return rows;
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 100, seed = 1;
  bool list = false;
  std::vector<std::string> names;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word == "--list") list = true;
    else if (word == "--rounds" && i + 1 < argc) rounds = std::atoi(argv[++i]);
    else if (word == "--seed" && i + 1 < argc) seed = std::atoi(argv[++i]);
    else names.push_back(word);
  }
  const std::vector<Candidate> rows = candidates();
  if (list) {
    for (const Candidate& c : rows) std::printf("%s %s\n", c.row->name, c.runs_here ? "runs" : "lacking");
    return 0;
  }
  for (const std::string& name : names) {
    bool known = false;
    for (const Candidate& c : rows) known = known || (name == c.row->name && c.runs_here);
    if (!known) return std::printf("%s cannot run here\n", name.c_str()), 2;
  }
  long failed = 0;
  for (const Candidate& c : rows) {
    bool wanted = names.empty() && c.runs_here;
    for (const std::string& name : names) wanted = wanted || name == c.row->name;
    if (!wanted) continue;
    g_state = static_cast<uint64_t>(seed) * 2654435761u + 1;
    g_checked = g_failed = g_int8 = g_int8_off = 0;
    test_row(c.row, rounds);
    // Where exp is in the way (cells), and where the first layer's f32 sums are rounded to int8, a few may round to the neighbour.
    if (g_int8_off > 1e-4 * g_int8) fail("share of int8 that differ by one", static_cast<double>(g_int8_off) / g_int8, 0, 1e-4);
    std::printf("%s: %ld numbers compared, %ld failed, %ld of %ld int8 off by one\n", c.row->name, g_checked, g_failed, g_int8_off, g_int8);
    failed += g_failed;
  }
  return failed ? 1 : 0;
}
