// What an output element reads: which frames, frequencies, channels and weights, for which stream. Shared by the kernels and by the
// CPU, so that a machine without a GPU can test it. No includes and no host library: NVRTC compiles this file as it stands.
//
// A frame of activations stands in device memory as [frequency][channel] of complex numbers (re and im side by side: one load brings
// both), with two frequencies of zeros on either side. So the window of taps that a convolution reads is one contiguous run.
// A ring keeps the last frames of a layer for every stream. Its slots are a power of two, so that the frame counter may wrap.
// One more slot, behind the others, is never written: silence, which is what lies beyond the end of a clip.
#ifndef EK_CUDA_INDEXING_H
#define EK_CUDA_INDEXING_H

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EK_BOTH __host__ __device__ __forceinline__
#else
#define EK_BOTH inline
#endif

namespace ek {
namespace cuda {

constexpr int kPad = 2;        // frequencies of zeros on either side of a frame
constexpr int kThreads = 256;  // of a block; every kernel here has as many
constexpr int kSources = 2;    // a decoder layer reads its predecessor and a skip
constexpr int kLive = -1;      // `past` of a stream that has not been told to end

// ---- frames ----

struct Ring {
  void* base;          // stream 0, slot 0; pairs of the engine's precision
  int stream_stride;   // pairs from one stream to the next
  int slots;           // power of two; slot number `slots` is silence
  int bins;            // frequencies, padding not counted
  int channels;        // complex
};

EK_BOTH int ring_slot_pairs(int bins, int channels) { return (bins + 2 * kPad) * channels; }
EK_BOTH int ring_pairs(int slots, int bins, int channels) { return (slots + 1) * ring_slot_pairs(bins, channels); }

// Slot of the frame `delay` frames before frame number `frame`.
EK_BOTH int slot_of(const Ring& ring, unsigned frame, int delay) {
  return static_cast<int>((frame - static_cast<unsigned>(delay)) & static_cast<unsigned>(ring.slots - 1));
}
EK_BOTH int silent_slot(const Ring& ring) { return ring.slots; }

// Number of the pair that holds channel 0 of frequency f; f may be -kPad .. bins + kPad - 1.
EK_BOTH int pair_of(const Ring& ring, int stream, int slot, int f) {
  return stream * ring.stream_stride + (slot * (ring.bins + 2 * kPad) + f + kPad) * ring.channels;
}

// ---- taps ----

// How the output columns of one phase lie among the frequencies. An encoder layer has one phase: column m reads 2m-2 .. 2m+2.
// A transposed layer has two: even outputs 2m read m-1, m, m+1 through kernel taps 4, 2, 0; odd outputs 2m+1 read m, m+1 through 3, 1.
struct Phase {
  int taps;
  int step, first;               // column m, tap k reads frequency m * step + first + k
  int kernel_first, kernel_step; // ... through kernel tap kernel_first + kernel_step * k
  int out_step, out_first;       // and writes frequency m * out_step + out_first
};

enum Kind { kEncoder = 0, kDecoder = 1, kProjection = 2 };

EK_BOTH int phases_of(Kind kind) { return kind == kDecoder ? 2 : 1; }
EK_BOTH int frames_of(Kind kind) { return kind == kProjection ? 1 : 2; }
EK_BOTH Phase phase_of(Kind kind, int number) {
  if (kind == kEncoder) return Phase{5, 2, -2, 0, 1, 1, 0};
  if (kind == kProjection) return Phase{1, 1, 0, 0, 1, 1, 0};
  if (number == 0) return Phase{3, 1, -1, 4, -2, 2, 0};
  return Phase{2, 1, 0, 3, -2, 2, 1};
}
EK_BOTH int input_row(const Phase& phase, int column, int tap) { return column * phase.step + phase.first + tap; }
EK_BOTH int kernel_tap(const Phase& phase, int tap) { return phase.kernel_first + phase.kernel_step * tap; }
EK_BOTH int output_row(const Phase& phase, int column) { return column * phase.out_step + phase.out_first; }
// Time tap of the kernel that multiplies the frame `age` frames before the newest. A transposed convolution runs backwards.
EK_BOTH int kernel_time(Kind kind, int age) { return kind == kEncoder ? 1 - age : age; }

// ---- how a layer is cut into blocks and threads ----

// A thread sums for CT channels (neighbours) and NT columns (neighbours) over every splits-th term of the sum; the partial sums of a
// block's splits meet in shared memory. All counts are powers of two, lanes * splits * groups = kThreads.
struct Cut {
  int lanes_log2;   // threads along channels: innermost, so that a warp's weights are one run of memory
  int splits_log2;  // threads that share one sum
  int groups_log2;  // sets of NT columns
};
struct Place {      // of one thread
  int lane, split, group;
};
EK_BOTH Place place_of(const Cut& cut, int thread) {
  return Place{thread & ((1 << cut.lanes_log2) - 1), (thread >> cut.lanes_log2) & ((1 << cut.splits_log2) - 1),
               thread >> (cut.lanes_log2 + cut.splits_log2)};
}

// Blocks count channel tiles fastest: neighbours read the same activations. Phases follow one another.
struct Grid {
  int channel_tiles, column_tiles;
};
struct Block {
  int phase, channel_tile, column_tile;
};
EK_BOTH Block block_of(const Grid& grid, int number) {
  const int column = number / grid.channel_tiles;
  return Block{column / grid.column_tiles, number - column * grid.channel_tiles, column % grid.column_tiles};
}

// Column n counts through the streams: stream n / columns, column n % columns.
struct Column {
  int stream, m;
};
EK_BOTH Column column_of(int n, int columns) { return Column{n / columns, n % columns}; }

// ---- the terms of a sum ----

// The sum of an output runs over sources, then age of the frame (newest first), then taps, then channels. Within one source and
// age it reads a window of taps * channels neighbouring pairs. Packed weights stand in the same order: [tile][term][channel of tile].
EK_BOTH int window_pairs(const Phase& phase, const Ring& ring) { return phase.taps * ring.channels; }
EK_BOTH int packed_weight(int tile, int terms, int term, int tile_channels, int channel_of_tile) {
  return (tile * terms + term) * tile_channels + channel_of_tile;
}

// One input of a convolution.
struct Source {
  Ring ring;
  int delay;        // frames between the engine's newest frame and the newest that this layer may read of this ring
};
// First pair of the window that column `at` reads of the frame `age` before its newest. `past` is how many frames ago the stream
// ended (kLive: it did not); a decoder layer that lags by `lag` frames finds silence in its newest frame once past > lag.
EK_BOTH int window_start(const Source& source, const Phase& phase, unsigned frame, int age, Column at, int past, int lag) {
  const int slot = age == 0 && past > lag ? silent_slot(source.ring) : slot_of(source.ring, frame, source.delay + age);
  return pair_of(source.ring, at.stream, slot, input_row(phase, at.m, 0));
}

// ---- what kernels are given ----

// Where a layer writes: a ring's pairs, or the mask as planes of floats. Counted in numbers, not pairs.
struct Target {
  void* base;
  int stream_stride, slot_stride;
  int slots;                  // 1: no ring
  int origin;                 // of frequency 0
  int row_step, channel_step;
  int part;                   // from a real part to its imaginary part
};
EK_BOTH int target_of(const Target& target, unsigned frame, int stream, int row, int channel) {
  const int slot = static_cast<int>(frame & static_cast<unsigned>(target.slots - 1));
  return stream * target.stream_stride + slot * target.slot_stride + target.origin + row * target.row_step + channel * target.channel_step;
}

// A graph is launched with the arguments it was captured with, and those hold the number of the frame: the slots that it reads and
// writes follow from it. Rings repeat after `period` frames, so there are that many graphs and frame number t launches graph t % period.

struct Conv {                 // encoder layer, decoder layer or projection
  Kind kind;
  unsigned frame;
  Source sources[kSources];
  int n_sources;
  int streams, columns;       // columns of one phase
  int c_out;
  int lag;                    // see window_start; kNoLag: never
  Cut cut;
  Grid grid;
  const void* weights[2];     // of each phase
  int terms[2];
  const float* gain;          // [2][c_out], real rows then imaginary rows
  const float* bias;
  float slope;
  Target target;
  const int* past;            // [streams]; null: no stream is ending
};
constexpr int kNoLag = 0x7fffffff;

struct Recurrent {            // one layer of a complex LSTM or GRU
  Ring x;                     // the input is all bins * channels pairs of one frame
  unsigned frame;
  int streams, hidden, inputs;
  int gru;
  Cut cut;                    // lanes: hidden units; groups: sets of NT streams
  Grid grid;
  const void* weights;        // [tile][inputs + hidden][unit of tile][net R, I][4]; gates of an LSTM i f g o, of a GRU r z n-of-x n-of-h
  const float* bias;          // [2 nets][hidden][4]
  float* h;                   // [stream][2][hidden][4]: R of re, R of im, I of re, I of im; the second index is the frame's parity
  float* c;                   // [stream][hidden][4], LSTM
  int h_stride, c_stride;     // floats from one stream to the next
  Target target;
};

struct Intake {               // spectrum [stream][2][bins] -> the first ring
  const float* spectrum;
  Ring ring;                  // pairs of float whatever the precision: spectra span more than fp16 does
  unsigned frame;
  int streams;
  unsigned* bad_values;       // counts numbers that were NaN or infinite and taken as zero
};

// Complex convolution on whole tensors: x [n][2 c_in][f][t], w [2][c_out][c_in][kf][kt] (transposed: [2][c_in][c_out][kf][kt]),
// y [n][2 c_out][f_out][t_out].
struct Tensor {
  int transposed;
  int n, c_in, c_out;
  int f, t, f_out, t_out;
  int kernel_f, kernel_t, stride_f, stride_t;
  int pad_f, pad_t;           // at the begin
  const void *x, *w;
  const float *gain, *bias;   // [2][c_out]; null: 1 and 0
  float slope;
  void* y;
  int chunk;                  // input channels whose weights stand in shared memory at once
};
// Which input position output position `out` reads through kernel tap k; -1: none, a zero.
EK_BOTH int tensor_input(int transposed, int out, int k, int stride, int pad, int size) {
  int in;
  if (transposed) {
    in = out + pad - k;
    if (in < 0 || in % stride != 0) return -1;
    in /= stride;
  } else {
    in = out * stride - pad + k;
  }
  return in >= 0 && in < size ? in : -1;
}
EK_BOTH long long tensor_weight(const Tensor& p, int part, int out, int in, int kf, int kt) {
  const int row = p.transposed ? in : out, rows = p.transposed ? p.c_in : p.c_out;
  const int column = p.transposed ? out : in, columns = p.transposed ? p.c_out : p.c_in;
  return (((static_cast<long long>(part) * rows + row) * columns + column) * p.kernel_f + kf) * p.kernel_t + kt;
}
// Number of the real value of complex channel c; the imaginary one lies `channels * f * t` further.
EK_BOTH long long tensor_element(int n, int c, int f, int t, int channels, int size_f, int size_t_) {
  return ((static_cast<long long>(n) * 2 * channels + c) * size_f + f) * size_t_ + t;
}

}  // namespace cuda
}  // namespace ek
#endif
