// A DCCRN packed for one row of kernels, and how one frame goes through it.
//
// What a stream remembers is one flat state: rings of frames and the recurrent states. A ring is written once a frame and read where it
// lies: an encoder's ring is as deep as the decoder that joins it is late, so it is the skip connection's delay line too, and no
// convolution copies. Decoder j sees `frame t` and `t - 1` of its input at step t; with look-ahead that input is the spectrum's frame t - j.
#ifndef EK_STREAM_NETWORK_H
#define EK_STREAM_NETWORK_H

#include <cstddef>
#include <cstdint>

#include "core/kernels.h"
#include "stream/file.h"
#include "stream/memory.h"
#include "stream/threads.h"

namespace ek {

constexpr int kMaxFrames = 2 * EK_MAX_DEPTH + 2;
constexpr int kMaxRings = 2 * kMaxFrames;  // of frames, then of their changes

// A ring of frames [frequency][plane][channel] within the state. For every frame of it, where its changes are written too, one byte:
// whether one of them is too large.
struct Ring {
  size_t offset = 0;       // of the oldest slot, from the state's begin
  size_t frame_bytes = 0;  // 0: there is no such ring
  size_t row_bytes = 0;
  int frames = 0;
  bool floats = false;     // else in the row's format
  size_t beyond = 0;       // offset of these bytes
};

// Where one tap of a kernel reads: `offset` bytes from row 0 of the frame `age` steps back.
struct TapPlan {
  int ring, age;
  ptrdiff_t offset;
};

// Where a phase's taps read, in one of its turns.
struct Reads {
  TapPlan taps[kMaxTaps];
  int n_taps;
};

// The newest frame of a ring that a phase reads.
struct Newest {
  int ring, age;
};

struct PhasePlan {
  Conv conv;         // every layer but the first and the last
  ConvSpec spec;     // of these two
  Reads plain, whole, rest;
  Newest newest[2];  // in turns: whose changes it reads
  int columns;
  size_t kept;       // in the state; only where it takes turns
};

struct CellState {
  size_t h_f32[2][2], c[2], h[2][2];  // [parity][input] and [input], offsets in the state
};

struct RecurrentPlan {
  Cell cell[2];  // R and I
  CellState state[2];
  int hidden;    // rounded
  float inv_scale;
};

class Network;

uint64_t count_macs(const Shape& shape);  // of a frame, four for a complex product

// One step on its way through the network; lives in the stream.
struct Step {
  const Network* network;
  char* state;
  float* mask;                      // [2][bins]
  int tail;                         // 0: a frame; k > 0: the k-th step behind the clip's last frame, where what comes in is zeros
  int parity;
  int slot[kMaxRings];
  const void** features[2];         // first recurrent input: a pointer to every frequency of the last encoder's frame
  char* scratch[EK_MAX_THREADS];    // of every thread
};

class Network {
 public:
  // Packs the weights into memory of its own. `is_bf16` with a row of f32: weights are rounded to bf16.
  // `is_fast`: two steps for the products of one and a half; the row must have `change_row`.
  ek_status build(const WeightFile& file, const Row* row, Algorithm algorithm, bool is_fast, bool is_bf16);

  size_t packed_bytes() const { return arena_.size(); }
  size_t state_bytes() const { return state_bytes_; }
  size_t step_bytes(int threads) const;                        // what prepare() takes from its arena

  void prepare(Step* step, char* state, int threads, Arena* arena) const;
  void reset(char* state) const;
  // Row 0 of the input ring's frame of this age at step `clock`: [bins][re, im], to be written (age 0) before run().
  float* input(char* state, uint64_t clock, int age) const { return static_cast<float*>(at_clock(state, clock, input_ring(), age)); }
  void run(Step* step, Team* team, uint64_t clock, float* mask, int tail) const;
  // Whether numbers that came from outside are possible ones: nothing NaN or infinite, no -128.
  bool is_sane(const char* state) const;

 private:
  int input_ring() const { return 0; }
  int encoder_ring(int i) const { return 1 + i; }
  int encoder0_floats_ring() const { return 1 + shape_.depth; }
  int decoder_ring(int j) const { return 2 + shape_.depth + j; }  // the input of decoder j
  static int change_ring(int ring) { return kMaxFrames + ring; }
  int last_skip_ring() const { return has_encoder0_floats_ ? encoder0_floats_ring() : encoder_ring(0); }

  void plan_rings();
  void plan_states();
  void plan_encoder(int i, PhasePlan* plan, Source* sources) const;
  void plan_decoder(int j, int phase, PhasePlan* plan, Source* sources) const;
  size_t place(const WeightFile& file, Arena* packed, void* scratch);
  size_t place_conv(const ConvTensors& tensors, bool is_transposed, int phase, int c_out, bool is_plain, const Source* sources, PhasePlan* plan, Arena* packed, void* scratch);
  void plan_turns(PhasePlan* plan) const;
  size_t place_recurrent(const WeightFile& file, int layer, Arena* packed, void* scratch);
  size_t place_projection(const WeightFile& file, Arena* packed, void* scratch);
  size_t scratch_numbers() const;

  int slot_of(int ring, int newest, int age) const;
  void* at(const Step& step, int ring, int age) const;
  void* at_clock(char* state, uint64_t clock, int ring, int age) const;
  static void work(void* step, Team* team, int thread);
  void frame(Step& step, Team* team, int thread) const;
  void encode(const Step& step, int layer, int thread, int threads) const;
  const void* const* recur(const Step& step, int layer, const void* const* x[2], Team* team, int thread, char* scratch) const;
  void project(const Step& step, const void* const x[2], int thread, int threads, char* scratch) const;
  void decode(const Step& step, int layer, int thread, int threads) const;
  void clear(const Step& step, int ring) const;
  void write_changes(const Step& step, int ring) const;
  unsigned char* beyond(const Step& step, int ring, int age) const;
  bool fits(const Step& step, const PhasePlan& plan, int steps_ago) const;
  Out out_to(const Step& step, int ring, int phase, int phases) const;
  void run_conv(const Step& step, const PhasePlan& plan, int layer, Out* out, int thread, int threads) const;
  void point(const Step& step, const Reads& reads, Tap* taps) const;
  size_t thread_bytes() const;

  Shape shape_ = {};
  const Row* row_ = nullptr;
  Algorithm algorithm_ = EK_FOUR_MULT;
  bool round_weights_ = false, has_encoder0_floats_ = false, is_fast_ = false;
  int planes_ = 2;

  Ring rings_[kMaxRings];
  size_t floats_bytes_ = 0, row_bytes_ = 0, sums_bytes_ = 0, state_bytes_ = 0;  // where the state's parts end: floats; the row's format; int8's sums; flags
  PhasePlan encoder_[EK_MAX_DEPTH], decoder_[EK_MAX_DEPTH][2];
  RecurrentPlan recurrent_[EK_MAX_RECURRENT];
  Dense* projection_[2] = {nullptr, nullptr};  // one for every frequency
  float projection_inv_scale_ = 1.0f;
  Arena arena_;
};

}  // namespace ek
#endif
