// What a row of kernels (one instruction set, one number format) must be able to do, and the layouts it works on.
//
// A frame of activations stands in memory as [frequency][plane][channel], with two frequencies of padding on either side:
//
//     row(f) = base + (f + 2) * planes * channels           f = -2 .. bins + 1
//     row(f)[0 * channels + c]   real part of complex channel c
//     row(f)[1 * channels + c]   imaginary part
//     row(f)[2 * channels + c]   what the row wants as a third plane, if it wants one: -imag (bf16, int8) or real + imag (Gauss)
//
// `channels` is the number of complex channels rounded up to 16; channels beyond the model's own hold `zero`. So no convolution
// copies: a tap of the kernel is a pointer to a row of an older or newer frame, and reads on from there.
//
// A row computes complex numbers from complex weights: re = Wr*xr - Wi*xi, im = Wr*xi + Wi*xr. Batch norm, bias, the scales of
// integers and PReLU are one affine form per output row and a slope, applied while the sums are in registers:
//
//     y_re = gain[0][c] * sum_re + bias[0][c],   y = y > 0 ? y : slope * y,   int8: q = clamp(round_half_even(y * inv_scale), -127, 127)
//
// int8 rounds after every one of these operations (sums are exact, gain * sum and + bias are not fused, a NaN becomes -127), so all rows
// agree bit for bit; hence -ffp-contract=off for every file in cpu/, GCC fuses intrinsics too. Cells and dense layers likewise:
// (sum_x * scale_x + bias_x) + (sum_h * scale_h + bias_h). bf16 weights are rounded half to even when packed.
//
// A layer sees two frames in time, y[t] = P x[t-1] + Q x[t], and either costs as much. As a fast FIR filter two steps cost three such products
// instead of four (Winograd's F(2,2)), and none of them waits for the future, since every step has what it needs:
//
//     EK_WHOLE, even t:  kept = (P + Q) x[t],    y[t]   = kept - P (x[t] - x[t-1])
//     EK_REST,  odd t:                           y[t+1] = kept + Q (x[t+1] - x[t])
//
// So frames have a twin that holds their change, written beside them (Out::change); sums pass from one step to the next (Out::kept); and
// neighbouring layers take the dear step in turn. A row that can do this has `change_row`.
//
// int8 sums are exact, so in turns they are those of EK_PLAIN to the bit, as long as every factor has its eight bits. P + Q has where the
// weights were quantized for it (the spec's promise). A change need not: whoever writes one beyond +-127 says so (Out::beyond), and the engine
// takes the layers that would have read it EK_PLAIN. That is rare: changes are seldom as large as the range, 6 ms after.
//
// Rules for the files that implement this: loops and intrinsics only, no std:: templates (the linker may keep one instruction
// set's copy for everyone), nothing allocated, no globals. The reference (`*_ref.cpp`) is the definition and stays slow and plain.
#ifndef EK_CORE_KERNELS_H
#define EK_CORE_KERNELS_H

#include <cstddef>
#include <cstdint>

namespace ek {

enum Format { EK_F32 = 0, EK_BF16 = 1, EK_I8 = 2 };  // of weights and activations; sums are f32, f32, s32
enum Algorithm { EK_FOUR_MULT = 0, EK_GAUSS = 1 };   // Gauss's three products instead of four; f32 only

constexpr int kLanes = 16;  // channels are rounded up to this whatever the instruction set, so that frames look alike everywhere
constexpr int kPad = 2;     // frequencies of padding on either side of a frame
constexpr int kMaxTaps = 32;

inline int rounded(int n, int to = kLanes) { return (n + to - 1) / to * to; }

// Where one tap of a kernel reads. `x` is row(f) of the first output column; column n reads x + n * step.
struct Tap {
  const void* x;
};

// What a tap's source looks like; the same for every frame, so it is known when weights are packed.
struct Source {
  int c_in;   // complex channels of the model (not rounded)
  int step;   // elements between what neighbouring columns read: stride * planes * rounded(c_in)
};

// One phase of one layer, before packing: complex weights in plain order.
// An encoder layer is one phase, stride 2, 10 taps. A transposed layer is two phases (even and odd output frequencies), stride 1.
struct ConvSpec {
  int c_out;                     // complex output channels of the model
  int columns;                   // output columns (frequencies of this phase)
  int n_taps;                    // <= kMaxTaps; order: frames old to new, sources, frequency taps low to high
  const Source* sources;         // [n_taps], what each tap reads
  const float* w[2];             // real and imaginary weights, f32 and bf16: for every tap in turn [c_out][c_in of that tap]
  const int8_t* q[2];            // the same as int8, symmetric; null unless EK_I8
  const float* gain[2];          // [c_out] of the real and of the imaginary row; int8: input scale * weight scale * batch norm
  const float* bias[2];          // [c_out]
  float slope;                   // PReLU; 1: none
  float inv_scale;               // int8: 1 / scale of the output
  Algorithm algorithm;
  bool takes_turns = false;      // will be run as EK_WHOLE and EK_REST, the first half of its taps being the older frames; then an
                                 // older q and the newer one of its place add up to at most +-127
};

// The same, packed by a row for itself into memory that the engine gave it. Plain data; pointers go into that memory.
struct Conv {
  int c_out, columns, n_taps;    // c_out rounded up to kLanes
  int items;                     // independent pieces of work: an engine with several threads deals them out
  int block;                     // for the row's own use: columns per item, panels per item, which variant
  int variant;
  bool takes_turns;
  int c_in[kMaxTaps];            // rounded as the row needs it (up to 4)
  int step[kMaxTaps];
  const void* weights;
  const float* gain[2];          // [c_out] rounded, zeros beyond; rows that add an offset to int8 inputs put its correction into bias
  const float* bias[2];
  float slope, inv_scale;
};

// How a phase is computed: as it is, or in turns. Taps of EK_WHOLE are newer frames, then their changes; of EK_REST changes.
enum Turn { EK_PLAIN = 0, EK_WHOLE = 1, EK_REST = 2 };

// Where a phase writes: frame rows first, first + stride, ... of `frame`, and/or plain floats [.. same rows ..][re|im][c] of `floats`.
struct Out {
  void* frame;        // row(first) of the output frame in the row's format; null: none
  float* floats;      // the same place of an f32 frame with two planes; null: none
  int frame_step;     // elements from one column to the next
  int floats_step;
  int channels;       // plane stride of both
  Turn turn = EK_PLAIN;
  void* kept = nullptr;          // [kept_sums()] sums of this phase, f32 or s32, in the row's own order
  void* change = nullptr;        // as `frame`, of the twin that holds what changed since the last step; null: none
  const void* before = nullptr;  // the same place of the last step's frame
  unsigned char* beyond = nullptr;  // becomes 1 where a change is too large to be written; else it stays. Written with relaxed atomics
};

// A change is too large. Threads may say so at once.
static inline void say_beyond(unsigned char* beyond) { __atomic_store_n(beyond, static_cast<unsigned char>(1), __ATOMIC_RELAXED); }

constexpr int kSumBytes = 4;
// How many sums a phase keeps: three of a complex number, for Gauss.
inline size_t kept_sums(int c_out, int columns) { return size_t{3} * static_cast<size_t>(rounded(c_out, 2 * kLanes)) * static_cast<size_t>(rounded(columns)); }

// First layer: f32 always. Input rows are [re, im] of one complex channel, two frequencies of padding on either side.
// Last layer: f32 always, one complex output channel. See Row::first and Row::last.

// A recurrent cell of complex form: two nets R and I, each run on the real and on the imaginary input. One CellSpec is R or I.
enum CellKind { EK_LSTM = 0, EK_GRU = 1 };
struct Segment { int n; };       // pieces of the input vector that lie apart in memory, such as the rows of a frame
struct CellSpec {
  CellKind kind;
  int hidden;                    // gates are in torch's order: LSTM i f g o, GRU r z n
  int n_segments;                // of the input vector
  const int* segment;            // [n_segments] lengths
  const float* w_x;              // [gates * hidden][sum of segments], already permuted to the segments' order
  const float* w_h;              // [gates * hidden][hidden]
  const int8_t* q_x;             // int8 of both, symmetric; null unless EK_I8
  const int8_t* q_h;
  const float* scale_x;          // [gates * hidden]: input scale * weight scale
  const float* scale_h;
  const float* bias_x;           // [gates * hidden]; GRU keeps both apart, since r multiplies W_hn h + b_hn
  const float* bias_h;
};
struct Cell {
  CellKind kind;
  int hidden;                    // rounded up to kLanes
  int n_segments;
  const int* segment;            // [n_segments], rounded as the row needs it; in that memory, since a shallow net has hundreds of frequencies
  int items;
  const void* weights;
  const float *scale_x, *scale_h, *bias_x, *bias_h;
};
// One step on both inputs at once (weights are read once). x[k][s]: segment s of input k (0 real, 1 imaginary) in the row's format.
// h_old/h_new [k]: the row's format, scale 1/127 for int8. h_f32[k]: the same h in f32. c[k]: LSTM only, f32, in place.
// GRU needs the old h in f32 too: h_f32_old.
struct CellRun {
  const void* const* x[2];
  const void* h_old[2];
  void* h_new[2];
  const float* h_f32_old[2];
  float* h_f32[2];
  float* c[2];
};

// A dense layer on one vector: y[r] = (sum) * scale[r] + bias[r], rows in the order of the output frame.
struct DenseSpec {
  int rows, n;                   // rows is a multiple of kLanes: the engine pads
  const float* w;                // [rows][n]
  const int8_t* q;
  const float* scale;            // [rows]
  const float* bias;             // [rows]
};
struct Dense {
  int rows, n, items;
  const void* weights;
  const float *scale, *bias;
};

// The table of one instruction set and one format. Every function is reentrant; `first`..`last` deal out work between threads.
struct Row {
  const char* name;              // "avx512_f32", "neon_dotprod_i8", ...
  Format format;
  int planes;                    // of a frame for EK_FOUR_MULT; EK_GAUSS of f32 always has 3
  unsigned char zero;            // the byte that stands for 0: 128 where int8 is stored as q + 128, else 0
  int element_bytes;

  // Bytes that pack_* will use, 64-byte aligned throughout; the same spec gives the same number.
  size_t (*conv_bytes)(const ConvSpec*);
  void (*pack_conv)(const ConvSpec*, void* memory, Conv*);
  void (*conv)(const Conv*, const Tap* taps, const Out*, int first_item, int last_item);

  size_t (*cell_bytes)(const CellSpec*);
  void (*pack_cell)(const CellSpec*, void* memory, Cell*);
  void (*cell)(const Cell*, const CellRun*, int first_item, int last_item);

  size_t (*dense_bytes)(const DenseSpec*);
  void (*pack_dense)(const DenseSpec*, void* memory, Dense*);
  // y_f32 [rows]; x in the row's format.
  void (*dense)(const Dense*, const void* x, float* y_f32, int first_item, int last_item);

  // f32 vector -> the row's format: y[i] = format(x[i] * inv_scale), n a multiple of kLanes. bf16 and f32 ignore inv_scale.
  void (*store)(const float* x, float inv_scale, void* y, int n);
  // One complex frequency row: re and im [channels] f32 -> all planes of a frame row.
  void (*store_row)(const float* re, const float* im, float inv_scale, void* row, int channels, int planes);

  // One complex frequency row: change = now - before in all planes; false where one is beyond what the row's format holds, and then it is
  // clamped. Null: this row keeps no sums and writes no changes.
  bool (*change_row)(const void* now, const void* before, void* change, int channels, int planes);

  // First layer: taps point at [re, im] pairs (f32), step in floats between columns. Writes like conv. w as ConvSpec with c_in 1.
  void (*first)(const ConvSpec*, const Tap* taps, const Out*, int first_column, int last_column);
  // Last layer: taps point at f32 frame rows with two planes; y[0][n * 2], y[1][n * 2] real and imaginary, n from first to last column.
  void (*last)(const ConvSpec*, const Tap* taps, float* re, float* im, int first_column, int last_column);
};

// Every row that this build holds; null where the CPU or the build lacks it. `isa`: "scalar", "avx2", "avx512", "neon", "neon_dotprod".
// "avx512" means AVX-512 F/BW/VL/DQ for f32, plus BF16 for bf16, plus VNNI for int8; what is lacking falls back to the next row below.
const Row* row_for(const char* isa, Format format);
const char* best_isa();          // by CPUID or getauxval; EDGEKIT_ISA overrides, an unknown or unsupported one is an error of the caller's

extern const Row scalar_f32, scalar_bf16, scalar_i8;        // cpu/*_ref.cpp: the definition
#if defined(__x86_64__)
extern const Row avx2_f32, avx2_i8, avx2_vnni_i8;           // avx2_vnni_i8: where AVX-VNNI is. bf16 under avx2: avx2_f32 on bf16-rounded weights
extern const Row avx512_f32, avx512_bf16, avx512_i8;
#elif defined(__aarch64__)
extern const Row neon_f32, neon_i8, neon_dotprod_i8;
#endif

}  // namespace ek
#endif
