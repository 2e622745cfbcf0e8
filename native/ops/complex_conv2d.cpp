// Complex convolution and transposed convolution on whole tensors, on top of the row table.
//
// Tensors have time innermost; rows work on frames with channels innermost. So input frames are brought into the frame layout, a
// row computes one output frame from pointers to them, and output frames are brought back. Both moves go through tiles of 16
// channels x 16 numbers that are neighbours in memory, and through chunks of 16 output frames, so that no cache line is read twice.
//
// A transposed convolution is a convolution per phase: output frequency o takes the kernel's frequencies k with
// (o + padding) % stride == k % stride, and output times do likewise. A plain convolution is the case of one phase.
#include "edgekit/ops.h"

#include <cstdlib>
#include <cstring>

#include "core/kernels.h"
#include "core/status.h"

namespace {

using namespace ek;

constexpr int kChunk = 16;      // output frames at a time
constexpr int kTile = 16;       // floats of a cache line
constexpr int kMaxChannels = 4096, kMaxKernel = 64, kMaxStride = 16, kMaxPadding = 4096, kMaxFrequencies = 1 << 20;
constexpr int64_t kMaxFrames = int64_t(1) << 31;
constexpr int kNoFrame = INT32_MIN;  // a tap that reads zeros: a phase that no tap of the kernel reaches has one

// One residue of output frequencies and times.
struct Phase {
  int first, stride;       // output frequencies first, first + stride, ...
  int residue;             // of the output times
  int frame[kMaxTaps];     // input time of a tap, relative to the time that stands under the output's
  int row[kMaxTaps];       // input frequency that a tap reads for the first column
  Conv conv;
};

class Memory {  // 64-byte aligned, never throws
 public:
  explicit Memory(size_t bytes) : start_(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {}
  ~Memory() { std::free(start_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  bool ok() const { return start_ != nullptr; }
  float* floats() const { return static_cast<float*>(start_); }
  void* release() {
    void* start = start_;
    start_ = nullptr;
    return start;
  }

 private:
  void* start_;
};

ek_status no_memory() { return fail(EK_NO_MEMORY, "complex convolution: there is not enough memory"); }

int divided_up(int a, int b) { return (a + b - 1) / b; }

ek_status check(const char* name, int value, int low, int high) {
  if (value >= low && value <= high) return EK_OK;
  return fail(EK_BAD_ARGUMENT, "complex convolution: %s is %d; it may be %d to %d", name, value, low, high);
}

ek_status check(const ek_complex_conv2d_shape* shape) {
  if (!shape) return fail(EK_BAD_ARGUMENT, "complex convolution: the shape is a null pointer");
  const ek_complex_conv2d_shape& s = *shape;
  const struct {
    const char* name;
    int value, low, high;
  } limits[] = {
      {"`transposed`", s.transposed, 0, 1},
      {"c_in", s.c_in, 1, kMaxChannels},
      {"c_out", s.c_out, 1, kMaxChannels},
      {"f", s.f, 1, kMaxFrequencies},
      {"the kernel in frequency", s.kernel[0], 1, kMaxKernel},
      {"the kernel in time", s.kernel[1], 1, kMaxKernel},
      {"the stride in frequency", s.stride[0], 1, kMaxStride},
      {"the stride in time", s.stride[1], 1, kMaxStride},
      {"the padding at the first frequency", s.padding[0], 0, kMaxPadding},
      {"the padding at the first time", s.padding[1], 0, kMaxPadding},
      {"the padding at the last frequency", s.padding[2], 0, kMaxPadding},
      {"the padding at the last time", s.padding[3], 0, kMaxPadding},
  };
  for (const auto& limit : limits)
    if (ek_status status = check(limit.name, limit.value, limit.low, limit.high)) return status;
  int taps = s.transposed ? divided_up(s.kernel[0], s.stride[0]) * divided_up(s.kernel[1], s.stride[1]) : s.kernel[0] * s.kernel[1];
  if (taps > kMaxTaps) return fail(EK_UNSUPPORTED, "complex convolution: %d taps reach one output; at most %d may", taps, kMaxTaps);
  return EK_OK;
}

// Length of an axis behind the convolution; below 1 where nothing comes out. axis: 0 frequency, 1 time.
int64_t length_out(const ek_complex_conv2d_shape& s, int axis, int64_t length) {
  int64_t padding = int64_t(s.padding[axis]) + s.padding[axis + 2];
  if (s.transposed) return (length - 1) * s.stride[axis] + s.kernel[axis] - padding;
  int64_t room = length + padding - s.kernel[axis];
  return room < 0 ? 0 : room / s.stride[axis] + 1;
}

// What the taps of one axis read: kernel index and offset, low to high.
struct AxisTaps {
  int n;
  int kernel[kMaxKernel], offset[kMaxKernel];
};

AxisTaps axis_taps(const ek_complex_conv2d_shape& s, int axis, int residue) {
  AxisTaps taps{};
  if (!s.transposed) {
    for (int k = 0; k < s.kernel[axis]; k++) taps.kernel[taps.n] = k, taps.offset[taps.n++] = k;
    return taps;
  }
  for (int m = divided_up(s.kernel[axis], s.stride[axis]) - 1; m >= 0; m--) {
    int k = residue + m * s.stride[axis];
    if (k < s.kernel[axis]) taps.kernel[taps.n] = k, taps.offset[taps.n++] = -m;
  }
  return taps;
}

}  // namespace

struct ek_complex_conv2d {
  ek_complex_conv2d_shape shape;
  const Row* row;
  int f_out;
  int channels_in, channels_out;  // rounded up to lanes
  int below, rows;                // zero rows below frequency 0 of an input frame, and its rows in all
  int n_phases;
  Phase* phases;
  void* weights;                  // what the phases point into

  size_t row_floats() const { return size_t(2) * channels_in; }
  size_t frame_floats() const { return rows * row_floats(); }
  size_t out_floats() const { return size_t(f_out) * 2 * channels_out; }
};

namespace {

// Copies 16 channels of `count` numbers, neighbours in memory, between a tensor's rows and 16-float pieces of frames.
// Full tiles have their own loop, whose lengths the compiler knows.
void tile_to_frames(const float* x, size_t x_step, int channels, int count, float* const* piece) {
  float tile[kTile][kLanes] = {};
  if (channels == kLanes && count == kTile) {
    for (int c = 0; c < kLanes; c++)
      for (int i = 0; i < kTile; i++) tile[i][c] = x[c * x_step + i];
  } else {
    for (int c = 0; c < channels; c++)
      for (int i = 0; i < count; i++) tile[i][c] = x[c * x_step + i];
  }
  for (int i = 0; i < count; i++) std::memcpy(piece[i], tile[i], sizeof tile[i]);
}

void tile_from_frames(const float* const* piece, int channels, int count, float* y, size_t y_step) {
  float tile[kTile][kLanes];
  for (int i = 0; i < count; i++) std::memcpy(tile[i], piece[i], sizeof tile[i]);
  if (channels == kLanes && count == kTile) {
    for (int c = 0; c < kLanes; c++)
      for (int i = 0; i < kTile; i++) y[c * y_step + i] = tile[i][c];
  } else {
    for (int c = 0; c < channels; c++)
      for (int i = 0; i < count; i++) y[c * y_step + i] = tile[i][c];
  }
}

// Numbers of one channel that lie side by side in a tensor [f][t], cut to times begin..end-1: everything at once if that is all
// times, else a run per frequency. visit(offset in the tensor, count <= 16, frequency and time of each).
template <typename Visit>
void for_each_run(int f, int64_t t, int64_t begin, int64_t end, Visit visit) {
  const bool whole = end - begin == t;
  const int64_t length = whole ? f * t : end - begin;
  int at_f[kTile];
  int64_t at_t[kTile];
  for (int start_f = 0; start_f < (whole ? 1 : f); start_f++) {
    int next_f = start_f;
    int64_t next_t = begin;
    for (int64_t i = 0; i < length; i += kTile) {
      int count = int(length - i < kTile ? length - i : kTile);
      for (int k = 0; k < count; k++) {
        at_f[k] = next_f, at_t[k] = next_t;
        if (++next_t == end) next_t = begin, next_f++;
      }
      visit(start_f * t + begin + i, count, at_f, at_t);
    }
  }
}

// Input times begin..end-1 of one clip into frames, the first of them into slot `slot`.
void load(const ek_complex_conv2d& p, const float* x, int64_t t, int64_t begin, int64_t end, int64_t slot, float* frames) {
  const size_t x_step = size_t(p.shape.f) * t;
  for (int plane = 0; plane < 2; plane++)
    for (int c = 0; c < p.shape.c_in; c += kLanes) {
      const float* from = x + (size_t(plane) * p.shape.c_in + c) * x_step;
      const int channels = p.shape.c_in - c < kLanes ? p.shape.c_in - c : kLanes;
      float* to = frames + p.below * p.row_floats() + size_t(plane) * p.channels_in + c;
      for_each_run(p.shape.f, t, begin, end, [&](int64_t offset, int count, const int* at_f, const int64_t* at_t) {
        float* piece[kTile];
        for (int i = 0; i < count; i++) piece[i] = to + (slot + at_t[i] - begin) * p.frame_floats() + at_f[i] * p.row_floats();
        tile_to_frames(from + offset, x_step, channels, count, piece);
      });
    }
}

// Output frames into times begin..end-1 of one clip.
void save(const ek_complex_conv2d& p, const float* frames, float* y, int64_t t, int64_t begin, int64_t end) {
  const size_t y_step = size_t(p.f_out) * t;
  for (int plane = 0; plane < 2; plane++)
    for (int c = 0; c < p.shape.c_out; c += kLanes) {
      float* to = y + (size_t(plane) * p.shape.c_out + c) * y_step;
      const int channels = p.shape.c_out - c < kLanes ? p.shape.c_out - c : kLanes;
      const float* from = frames + size_t(plane) * p.channels_out + c;
      for_each_run(p.f_out, t, begin, end, [&](int64_t offset, int count, const int* at_f, const int64_t* at_t) {
        const float* piece[kTile];
        for (int i = 0; i < count; i++) piece[i] = from + (at_t[i] - begin) * p.out_floats() + size_t(at_f[i]) * 2 * p.channels_out;
        tile_from_frames(piece, channels, count, to + offset, y_step);
      });
    }
}

// The input time that stands under an output time, and the output time's residue.
int64_t time_under(const ek_complex_conv2d_shape& s, int64_t time) {
  return s.transposed ? (time + s.padding[1]) / s.stride[1] : time * s.stride[1] - s.padding[1];
}
int residue_of(const ek_complex_conv2d_shape& s, int64_t time) { return s.transposed ? int((time + s.padding[1]) % s.stride[1]) : 0; }

// First and last input time that output times first..last read.
struct Span {
  int64_t first, last;
};
Span input_span(const ek_complex_conv2d_shape& s, int64_t first, int64_t last) {
  if (s.transposed) return {time_under(s, first) - (divided_up(s.kernel[1], s.stride[1]) - 1), time_under(s, last)};
  return {time_under(s, first), time_under(s, last) + s.kernel[1] - 1};
}

// One output frame. frames: input frames, `span_first` in slot 0; nothing: a frame of zeros.
void compute(const ek_complex_conv2d& p, int64_t time, int64_t t, const float* frames, int64_t span_first, const float* nothing, float* out) {
  const int64_t under = time_under(p.shape, time);
  const int residue = residue_of(p.shape, time);
  for (int i = 0; i < p.n_phases; i++) {
    const Phase& phase = p.phases[i];
    if (phase.residue != residue) continue;
    Tap taps[kMaxTaps];
    for (int k = 0; k < phase.conv.n_taps; k++) {
      int64_t at = phase.frame[k] == kNoFrame ? -1 : under + phase.frame[k];
      const float* frame = at < 0 || at >= t ? nothing : frames + (at - span_first) * p.frame_floats();
      taps[k].x = frame + (p.below + phase.row[k]) * p.row_floats();
    }
    Out where{};
    where.floats = out + size_t(phase.first) * 2 * p.channels_out;
    where.floats_step = phase.stride * 2 * p.channels_out;
    where.channels = p.channels_out;
    p.row->conv(&phase.conv, taps, &where, 0, phase.conv.items);
  }
}

// Taps of every phase, without weights; also how far they read below frequency 0 and above the last.
int lay_out_phases(const ek_complex_conv2d_shape& s, int f_out, Phase* phases, int* below, int* above) {
  const int residues_f = s.transposed ? s.stride[0] : 1, residues_t = s.transposed ? s.stride[1] : 1;
  const int step = s.transposed ? 1 : s.stride[0];
  int n = 0;
  *below = *above = 0;
  for (int residue_t = 0; residue_t < residues_t; residue_t++)
    for (int residue_f = 0; residue_f < residues_f; residue_f++) {
      Phase phase{};
      phase.residue = residue_t;
      phase.stride = residues_f;
      phase.first = s.transposed ? (residue_f + s.stride[0] * kMaxPadding - s.padding[0]) % s.stride[0] : 0;
      if (phase.first >= f_out) continue;
      phase.conv.columns = (f_out - 1 - phase.first) / phase.stride + 1;
      const int start = s.transposed ? (phase.first + s.padding[0] - residue_f) / s.stride[0] : -s.padding[0];
      const AxisTaps across = axis_taps(s, 0, residue_f), along = axis_taps(s, 1, residue_t);
      for (int j = 0; j < along.n; j++)
        for (int k = 0; k < across.n; k++) {
          const int row = start + across.offset[k], last_row = row + (phase.conv.columns - 1) * step;
          phase.frame[phase.conv.n_taps] = along.offset[j];
          phase.row[phase.conv.n_taps++] = row;
          if (-row > *below) *below = -row;
          if (last_row - (s.f - 1) > *above) *above = last_row - (s.f - 1);
        }
      if (phase.conv.n_taps == 0) {
        // Zeros are read as far as columns go.
        phase.frame[0] = kNoFrame;
        phase.conv.n_taps = 1;
        if (phase.conv.columns - 1 - (s.f - 1) > *above) *above = phase.conv.columns - s.f;
      }
      if (phases) phases[n] = phase;
      n++;
    }
  return n;
}

// Weights of one phase, for every tap in turn [c_out][c_in], real and imaginary apart.
void gather_weights(const ek_complex_conv2d_shape& s, const Phase& phase, int residue_f, const float* w, float* re, float* im) {
  const size_t kernel = size_t(s.kernel[0]) * s.kernel[1], pairs = size_t(s.c_in) * s.c_out;
  if (phase.frame[0] == kNoFrame) {
    std::memset(re, 0, pairs * sizeof(float));
    std::memset(im, 0, pairs * sizeof(float));
    return;
  }
  const AxisTaps across = axis_taps(s, 0, residue_f), along = axis_taps(s, 1, phase.residue);
  // Blocks of 16 inputs x 8 outputs: whole cache lines are written however many taps there are, and read whichever comes first in w.
  constexpr int kOutputs = 8;
  float block[2][kMaxTaps][kOutputs][kLanes];
  for (int i = 0; i < s.c_in; i += kLanes)
    for (int o = 0; o < s.c_out; o += kOutputs) {
      const int lanes = s.c_in - i < kLanes ? s.c_in - i : kLanes, outputs = s.c_out - o < kOutputs ? s.c_out - o : kOutputs;
      for (int lane = 0; lane < lanes; lane++)
        for (int output = 0; output < outputs; output++) {
          const float* from = w + (s.transposed ? size_t(i + lane) * s.c_out + o + output : size_t(o + output) * s.c_in + i + lane) * kernel;
          for (int j = 0, tap = 0; j < along.n; j++)
            for (int k = 0; k < across.n; k++, tap++) {
              const int at = across.kernel[k] * s.kernel[1] + along.kernel[j];
              block[0][tap][output][lane] = from[at];
              block[1][tap][output][lane] = from[pairs * kernel + at];
            }
        }
      for (int tap = 0; tap < phase.conv.n_taps; tap++)
        for (int output = 0; output < outputs; output++) {
          const size_t to = tap * pairs + size_t(o + output) * s.c_in + i;
          std::memcpy(re + to, block[0][tap][output], lanes * sizeof(float));
          std::memcpy(im + to, block[1][tap][output], lanes * sizeof(float));
        }
    }
}

int residue_f_of(const ek_complex_conv2d_shape& s, const Phase& phase) {
  return s.transposed ? (phase.first + s.padding[0]) % s.stride[0] : 0;
}

ConvSpec spec_of(const ek_complex_conv2d_shape& s, const Phase& phase, const Source* sources, const float* re, const float* im,
                 const float* ones, const float* bias) {
  ConvSpec spec{};
  spec.c_out = s.c_out;
  spec.columns = phase.conv.columns;
  spec.n_taps = phase.conv.n_taps;
  spec.sources = sources;
  spec.w[0] = re, spec.w[1] = im;
  spec.gain[0] = spec.gain[1] = ones;
  spec.bias[0] = bias, spec.bias[1] = bias + s.c_out;
  spec.slope = 1;
  spec.inv_scale = 1;
  spec.algorithm = EK_FOUR_MULT;
  return spec;
}

ek_status whole(int transposed, const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, const float* x, const float* w, const float* b,
                float* y) {
  if (shape && shape->transposed != transposed) return fail(EK_BAD_ARGUMENT, "complex convolution: `transposed` does not agree with the call");
  ek_complex_conv2d* packed = nullptr;
  ek_status status = ek_complex_conv2d_pack(shape, w, b, &packed);
  if (status != EK_OK) return status;
  int64_t f_out = 0, t_out = 0;
  status = ek_complex_conv2d_output(shape, t, &f_out, &t_out);
  if (status == EK_OK) status = ek_complex_conv2d_run(packed, n, t, x, y, 0, n * t_out);
  ek_complex_conv2d_free(packed);
  return status;
}

}  // namespace

extern "C" {

ek_status ek_complex_conv2d_output(const ek_complex_conv2d_shape* shape, int64_t t, int64_t* f_out, int64_t* t_out) {
  if (ek_status status = check(shape)) return status;
  if (!f_out || !t_out) return fail(EK_BAD_ARGUMENT, "complex convolution: a result is a null pointer");
  if (t < 1 || t > kMaxFrames) return fail(EK_BAD_ARGUMENT, "complex convolution: t is %lld; it may be 1 to 2^31", static_cast<long long>(t));
  *f_out = length_out(*shape, 0, shape->f);
  *t_out = length_out(*shape, 1, t);
  if (*f_out < 1 || *t_out < 1)
    return fail(EK_BAD_ARGUMENT, "complex convolution: nothing comes out of %d frequencies and %lld frames", shape->f, static_cast<long long>(t));
  return EK_OK;
}

ek_status ek_complex_conv2d_pack(const ek_complex_conv2d_shape* shape, const float* w, const float* b, ek_complex_conv2d** packed) {
  if (ek_status status = check(shape)) return status;
  if (!w || !packed) return fail(EK_BAD_ARGUMENT, "complex convolution: the weights or the result are a null pointer");
  *packed = nullptr;
  const ek_complex_conv2d_shape& s = *shape;
  const int64_t f_out = length_out(s, 0, s.f);
  if (f_out < 1) return fail(EK_BAD_ARGUMENT, "complex convolution: nothing comes out of %d frequencies", s.f);
  const char* isa = best_isa();
  const Row* row = isa ? row_for(isa, EK_F32) : nullptr;
  if (!row) return EK_UNSUPPORTED;  // they left a sentence
  if (row->planes != 2) return fail(EK_UNSUPPORTED, "complex convolution: row %s wants more planes than real and imaginary", row->name);

  int below = 0, above = 0;
  const int n_phases = lay_out_phases(s, int(f_out), nullptr, &below, &above);
  const size_t head = (sizeof(ek_complex_conv2d) + 63) / 64 * 64;
  Memory memory(head + n_phases * sizeof(Phase));
  Memory plain((size_t(kMaxTaps) * s.c_in * s.c_out * 2 + size_t(3) * s.c_out) * sizeof(float));
  if (!memory.ok() || !plain.ok()) return no_memory();
  float* const ones = plain.floats();
  float* const bias = ones + s.c_out;
  float* const re = bias + 2 * s.c_out;
  float* const im = re + size_t(kMaxTaps) * s.c_in * s.c_out;
  for (int c = 0; c < s.c_out; c++) ones[c] = 1;
  for (int c = 0; c < 2 * s.c_out; c++) bias[c] = b ? b[c] : 0;

  auto* plan = reinterpret_cast<ek_complex_conv2d*>(memory.floats());
  *plan = {};
  plan->shape = s;
  plan->row = row;
  plan->f_out = int(f_out);
  plan->channels_in = rounded(s.c_in);
  plan->channels_out = rounded(s.c_out);
  plan->n_phases = n_phases;
  plan->phases = reinterpret_cast<Phase*>(reinterpret_cast<char*>(memory.floats()) + head);
  lay_out_phases(s, int(f_out), plan->phases, &plan->below, &above);
  plan->rows = plan->below + s.f + above;

  Source sources[kMaxTaps];
  for (Source& source : sources) source = {s.c_in, (s.transposed ? 1 : s.stride[0]) * 2 * plan->channels_in};
  size_t bytes = 0;
  for (int i = 0; i < n_phases; i++) {
    ConvSpec spec = spec_of(s, plan->phases[i], sources, re, im, ones, bias);
    bytes += (row->conv_bytes(&spec) + 63) / 64 * 64;
  }
  Memory weights(bytes);
  if (!weights.ok()) return no_memory();
  char* next = reinterpret_cast<char*>(weights.floats());
  for (int i = 0; i < n_phases; i++) {
    Phase& phase = plan->phases[i];
    gather_weights(s, phase, residue_f_of(s, phase), w, re, im);
    ConvSpec spec = spec_of(s, phase, sources, re, im, ones, bias);
    row->pack_conv(&spec, next, &phase.conv);
    next += (row->conv_bytes(&spec) + 63) / 64 * 64;
  }
  plan->weights = weights.release();
  memory.release();
  *packed = plan;
  return EK_OK;
}

void ek_complex_conv2d_free(ek_complex_conv2d* packed) {
  if (!packed) return;
  std::free(packed->weights);
  std::free(packed);
}

ek_status ek_complex_conv2d_run(const ek_complex_conv2d* packed, int64_t n, int64_t t, const float* x, float* y, int64_t first, int64_t last) {
  if (!packed) return fail(EK_BAD_ARGUMENT, "complex convolution: the packed weights are a null pointer");
  const ek_complex_conv2d& p = *packed;
  int64_t f_out = 0, t_out = 0;
  ek_status status = ek_complex_conv2d_output(&p.shape, t, &f_out, &t_out);
  if (status != EK_OK) return status;
  if (n < 0 || n > kMaxFrames || first < 0 || last < first || last > n * t_out)
    return fail(EK_BAD_ARGUMENT, "complex convolution: frames %lld to %lld of %lld clips of %lld frames", static_cast<long long>(first),
                static_cast<long long>(last), static_cast<long long>(n), static_cast<long long>(t_out));
  if (first == last) return EK_OK;
  if (!x || !y) return fail(EK_BAD_ARGUMENT, "complex convolution: a tensor is a null pointer");

  const int64_t chunk = t_out < kChunk ? t_out : kChunk;
  const Span longest = input_span(p.shape, p.shape.transposed ? p.shape.stride[1] - 1 : 0, (p.shape.transposed ? p.shape.stride[1] - 1 : 0) + chunk - 1);
  const int64_t slots = longest.last - longest.first + 2;  // one to spare: a transposed span's length depends on where it starts
  const size_t frame = p.frame_floats();
  Memory memory(((slots + 1) * frame + chunk * p.out_floats()) * sizeof(float));
  if (!memory.ok()) return no_memory();
  float* const nothing = memory.floats();
  float* const frames = nothing + frame;
  float* const out = frames + slots * frame;
  std::memset(nothing, 0, (slots + 1) * frame * sizeof(float));  // rows of padding stay so

  const size_t clip_in = size_t(2) * p.shape.c_in * p.shape.f * t, clip_out = size_t(2) * p.shape.c_out * f_out * t_out;
  for (int64_t at = first; at < last;) {
    const int64_t clip = at / t_out, begin = at % t_out;
    int64_t end = begin + chunk < t_out ? begin + chunk : t_out;
    if (end - begin > last - at) end = begin + (last - at);
    const Span span = input_span(p.shape, begin, end - 1);
    const int64_t from = span.first > 0 ? span.first : 0, to = span.last < t ? span.last + 1 : t;
    if (from < to) load(p, x + clip * clip_in, t, from, to, from - span.first, frames);
    for (int64_t time = begin; time < end; time++) compute(p, time, t, frames, span.first, nothing, out + (time - begin) * p.out_floats());
    save(p, out, y + clip * clip_out, t_out, begin, end);
    at += end - begin;
  }
  return EK_OK;
}

ek_status ek_complex_conv2d_f32(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, const float* x, const float* w, const float* b,
                                float* y) {
  return whole(0, shape, n, t, x, w, b, y);
}

ek_status ek_complex_conv_transpose2d_f32(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, const float* x, const float* w,
                                          const float* b, float* y) {
  return whole(1, shape, n, t, x, w, b, y);
}

}  // extern "C"
