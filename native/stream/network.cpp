#include "stream/network.h"

#include <cstring>

#include "core/status.h"

namespace ek {
namespace {

constexpr size_t kMostState = size_t{1} << 30;  // a file of some KB can ask for frames of many GB

// Frequency taps of a transposed layer's even and odd outputs, from the low input frequency to the high: out 2m sees m - 1, m, m + 1 through
// kernel rows 4, 2, 0; out 2m + 1 sees m, m + 1 through rows 3, 1.
struct FrequencyTap {
  int kernel, shift;
};
constexpr FrequencyTap kEven[] = {{4, -1}, {2, 0}, {0, 1}}, kOdd[] = {{3, 0}, {1, 1}};

int part_of(int items, int thread, int threads) { return static_cast<int>(static_cast<int64_t>(items) * thread / threads); }

float to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  memcpy(&x, &bits, 4);
  return x;
}

// Copies of small tables that the row keeps no copy of.
const float* keep(const float* values, int n, int to, Arena* packed, size_t* bytes) {
  *bytes += Arena::padded(sizeof(float) * static_cast<size_t>(to));
  if (!packed) return nullptr;
  float* kept = packed->take<float>(static_cast<size_t>(to));
  for (int i = 0; i < n; i++) kept[i] = values[i];
  return kept;
}

}  // namespace

ek_status Network::build(const WeightFile& file, const Row* row, Algorithm algorithm, bool is_fast, bool is_bf16) {
  shape_ = file.shape;
  row_ = row;
  algorithm_ = algorithm;
  is_fast_ = is_fast;
  round_weights_ = is_bf16 && row->format == EK_F32;
  planes_ = algorithm == EK_GAUSS ? 3 : row->planes;
  has_encoder0_floats_ = row->format != EK_F32 || planes_ != 2;
  plan_rings();
  plan_states();
  if (state_bytes_ > kMostState) return fail(EK_UNSUPPORTED, "a stream of this model would need %zu MB", state_bytes_ >> 20);

  Arena scratch;
  const size_t scratch_bytes = scratch_numbers() * (row->format == EK_I8 ? 4 : 8);
  if (!scratch.reserve(Arena::padded(scratch_bytes))) return fail(EK_NO_MEMORY, "no memory to pack the weights in");
  void* work = scratch.take(scratch_bytes);
  if (!arena_.reserve(place(file, nullptr, work))) return fail(EK_NO_MEMORY, "no memory for the packed weights");
  place(file, &arena_, work);
  return EK_OK;
}

uint64_t count_macs(const Shape& shape) {
  const int n = shape.depth;
  uint64_t count = 0;
  const auto times = [](int a, int b) { return static_cast<uint64_t>(a) * static_cast<uint64_t>(b); };
  for (int i = 0; i < n; i++) count += 4 * 10 * times(shape.c_enc[i], shape.c_enc[i + 1]) * static_cast<uint64_t>(shape.frequencies(i + 1));
  int width = shape.features();
  for (int l = 0; l < shape.rnn_layers; l++) {
    count += 4 * times(shape.gates() * shape.hidden[l], width + shape.hidden[l]);
    width = shape.hidden[l];
  }
  count += 2 * times(shape.c_dec[0] * shape.frequencies(n), width);
  for (int j = 0; j < n; j++) count += 4 * 10 * times(shape.c_dec[j] + shape.c_enc[n - j], shape.c_dec[j + 1]) * static_cast<uint64_t>(shape.frequencies(n - j));
  return count;
}

// ---- planning ----

void Network::plan_rings() {
  const int n = shape_.depth;
  const auto ring = [&](int index, int frames, int frequencies, int channels, bool floats) {
    const size_t row_bytes = static_cast<size_t>(floats ? 2 : planes_) * static_cast<size_t>(channels) * static_cast<size_t>(floats ? 4 : row_->element_bytes);
    rings_[index] = Ring{0, Arena::padded(row_bytes * static_cast<size_t>(frequencies + 2 * kPad)), row_bytes, frames, floats};
  };
  // The mask comes delay() frames late: the spectrum waits for it in the input ring. Its one channel is not rounded.
  ring(input_ring(), 1 + (shape_.delay() > 0 ? shape_.delay() : 1), shape_.bins(), 1, true);
  for (int i = 0; i < n; i++) {
    // Joined by decoder n - 1 - i, which is that many frames late.
    const int frames = 2 + (shape_.look_ahead ? n - 1 - i : 0), channels = rounded(shape_.c_enc[i + 1]);
    ring(encoder_ring(i), i == 0 && has_encoder0_floats_ ? 2 : frames, shape_.frequencies(i + 1), channels, false);
    if (i == 0 && has_encoder0_floats_) ring(encoder0_floats_ring(), frames, shape_.frequencies(1), channels, true);
  }
  for (int j = 0; j < n; j++) ring(decoder_ring(j), 2, shape_.frequencies(n - j), rounded(shape_.c_dec[j]), j == n - 1);
  for (int r = 0; r < kMaxFrames && is_fast_; r++) {
    if (rings_[r].frame_bytes == 0 || rings_[r].floats) continue;
    rings_[change_ring(r)] = rings_[r];
    rings_[change_ring(r)].frames--;  // whoever reads a frame and the one before reads one change
  }
}

void Network::plan_states() {
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    const size_t offset = at;
    at += Arena::padded(bytes);
    return offset;
  };
  const auto take_rings = [&](bool floats) {
    for (int r = 0; r < kMaxRings; r++) {
      if (rings_[r].frame_bytes && rings_[r].floats == floats) rings_[r].offset = take(rings_[r].frame_bytes * static_cast<size_t>(rings_[r].frames));
    }
  };
  const auto for_cells = [&](auto&& action) {
    for (int l = 0; l < shape_.rnn_layers; l++) {
      for (CellState& cell : recurrent_[l].state) action(cell, static_cast<size_t>(rounded(shape_.hidden[l])));
    }
  };
  take_rings(true);
  for_cells([&](CellState& cell, size_t hidden) {
    for (int k = 0; k < 2; k++) {
      cell.c[k] = take(4 * hidden);
      for (int parity = 0; parity < 2; parity++) cell.h_f32[parity][k] = take(4 * hidden);
    }
  });
  const auto take_sums = [&] {
    for (int i = 1; i < shape_.depth && is_fast_; i++) {
      encoder_[i].kept = take(kSumBytes * kept_sums(shape_.c_enc[i + 1], shape_.frequencies(i + 1)));
      for (PhasePlan& phase : decoder_[i - 1]) phase.kept = take(kSumBytes * kept_sums(shape_.c_dec[i], shape_.frequencies(shape_.depth - i + 1)));
    }
  };
  const bool is_int8 = row_->format == EK_I8;
  if (!is_int8) take_sums();
  floats_bytes_ = at;
  take_rings(false);
  for_cells([&](CellState& cell, size_t hidden) {
    for (int k = 0; k < 2; k++) {
      for (int parity = 0; parity < 2; parity++) cell.h[parity][k] = take(hidden * static_cast<size_t>(row_->element_bytes));
    }
  });
  row_bytes_ = at;
  if (is_int8) take_sums();
  sums_bytes_ = at;
  for (int r = 0; r < kMaxFrames && is_fast_; r++) {
    if (rings_[change_ring(r)].frame_bytes) rings_[r].beyond = take(static_cast<size_t>(rings_[r].frames));
  }
  state_bytes_ = at;
}

void Network::plan_encoder(int i, PhasePlan* plan, Source* sources) const {
  const int ring = i == 0 ? input_ring() : encoder_ring(i - 1), c_in = shape_.c_enc[i];
  const int row_elements = i == 0 ? 2 : planes_ * rounded(c_in);
  Reads& reads = plan->plain;
  reads.n_taps = 0;
  plan->columns = shape_.frequencies(i + 1);
  for (int time = 0; time < kKernelT; time++) {
    for (int k = 0; k < kKernelF; k++) {
      sources[reads.n_taps] = Source{c_in, kStrideF * row_elements};
      reads.taps[reads.n_taps++] = TapPlan{ring, 1 - time, (k - 2) * static_cast<ptrdiff_t>(rings_[ring].row_bytes)};
    }
  }
}

void Network::plan_decoder(int j, int phase, PhasePlan* plan, Source* sources) const {
  const int n = shape_.depth, skip = j == n - 1 ? last_skip_ring() : encoder_ring(n - 1 - j), late = shape_.look_ahead ? j : 0;
  const FrequencyTap* taps = phase == 0 ? kEven : kOdd;
  Reads& reads = plan->plain;
  reads.n_taps = 0;
  plan->columns = shape_.frequencies(n - j);
  for (int age = 1; age >= 0; age--) {
    for (int source = 0; source < 2; source++) {
      const int ring = source == 0 ? decoder_ring(j) : skip, c_in = source == 0 ? shape_.c_dec[j] : shape_.c_enc[n - j];
      for (int k = 0; k < (phase == 0 ? 3 : 2); k++) {
        sources[reads.n_taps] = Source{c_in, (rings_[ring].floats ? 2 : planes_) * rounded(c_in)};
        reads.taps[reads.n_taps++] = TapPlan{ring, age + (source == 0 ? 0 : late), taps[k].shift * static_cast<ptrdiff_t>(rings_[ring].row_bytes)};
      }
    }
  }
}

// From a phase that reads older frames and then newer ones to its turns: newer frames and their changes, or changes alone.
void Network::plan_turns(PhasePlan* plan) const {
  const int half = plan->plain.n_taps / 2;
  plan->whole.n_taps = 2 * half;
  plan->rest.n_taps = half;
  for (int t = 0; t < half; t++) {
    const TapPlan& newer = plan->plain.taps[half + t];
    plan->whole.taps[t] = newer;
    plan->whole.taps[half + t] = plan->rest.taps[t] = TapPlan{change_ring(newer.ring), newer.age, newer.offset};
  }
  // Both sources of a decoder, the same one twice of an encoder.
  for (int source = 0; source < 2; source++) {
    const TapPlan& newer = plan->plain.taps[half + source * (half - 1)];
    plan->newest[source] = Newest{newer.ring, newer.age};
  }
}

// ---- packing ----

// Numbers of the largest piece that is put in order before a row packs it, over both parts of complex weights.
size_t Network::scratch_numbers() const {
  const int n = shape_.depth;
  size_t most = 0;
  const auto piece = [&](size_t numbers) { most = numbers > most ? numbers : most; };
  const auto conv = [&](int c_in, int c_out) { piece(2 * static_cast<size_t>(kKernelF * kKernelT) * static_cast<size_t>(rounded(c_in) + kLanes) * static_cast<size_t>(rounded(c_out))); };
  for (int i = 0; i < n; i++) conv(shape_.c_enc[i], shape_.c_enc[i + 1]);
  for (int j = 0; j < n; j++) conv(shape_.c_dec[j] + shape_.c_enc[n - j], shape_.c_dec[j + 1]);
  int width = shape_.features();
  for (int l = 0; l < shape_.rnn_layers; l++) {
    piece(static_cast<size_t>(shape_.gates() * shape_.hidden[l]) * static_cast<size_t>(width + shape_.hidden[l] + 4));
    width = shape_.hidden[l];
  }
  piece(static_cast<size_t>(rounded(shape_.c_dec[0])) * static_cast<size_t>(width + 2));
  return most;
}

// Packs everything into `packed`, or without one only says how many bytes that takes.
size_t Network::place(const WeightFile& file, Arena* packed, void* scratch) {
  const int n = shape_.depth;
  size_t bytes = 0;
  Source sources[kMaxTaps];
  for (int i = 0; i < n; i++) {
    plan_encoder(i, &encoder_[i], sources);
    bytes += place_conv(file.encoder[i], false, 0, shape_.c_enc[i + 1], i == 0, sources, &encoder_[i], packed, scratch);
  }
  for (int l = 0; l < shape_.rnn_layers; l++) bytes += place_recurrent(file, l, packed, scratch);
  bytes += place_projection(file, packed, scratch);
  for (int j = 0; j < n; j++) {
    for (int phase = 0; phase < 2; phase++) {
      plan_decoder(j, phase, &decoder_[j][phase], sources);
      bytes += place_conv(file.decoder[j], true, phase, shape_.c_dec[j + 1], j == n - 1, sources, &decoder_[j][phase], packed, scratch);
    }
  }
  return bytes;
}

// `is_plain`: the first or the last layer, which run from float weights in plain order.
size_t Network::place_conv(const ConvTensors& tensors, bool is_transposed, int phase, int c_out, bool is_plain, const Source* sources, PhasePlan* plan, Arena* packed, void* scratch) {
  const bool is_int8 = row_->format == EK_I8 && !is_plain, round = round_weights_ && !is_plain;
  // Plain layers get whole vectors of channels, so that a row needs no tails there: zeros weigh nothing.
  const int rows = is_plain && !is_transposed ? rounded(c_out) : c_out;
  const int n = plan->plain.n_taps, per_age = n / 2, c_first = sources[0].c_in;
  const int c_all = is_transposed ? c_first + sources[per_age / 2].c_in : c_first;
  Source padded[kMaxTaps];
  size_t numbers = 0;
  for (int t = 0; t < n; t++) {
    padded[t] = sources[t];
    if (is_plain && is_transposed) padded[t].c_in = rounded(sources[t].c_in);
    numbers += static_cast<size_t>(rows) * static_cast<size_t>(padded[t].c_in);
  }
  float* w[2] = {static_cast<float*>(scratch), static_cast<float*>(scratch) + numbers};
  int8_t* q[2] = {static_cast<int8_t*>(scratch), static_cast<int8_t*>(scratch) + numbers};
  if (packed) {
    const FrequencyTap* taps = phase == 0 ? kEven : kOdd;
    for (int part = 0; part < 2; part++) {
      size_t at = 0;
      for (int t = 0; t < n; t++) {
        const int in_age = t % per_age, source = is_transposed && in_age >= per_age / 2 ? 1 : 0;
        const int kernel = is_transposed ? taps[in_age % (per_age / 2)].kernel : in_age;
        // A convolution's kernel runs from old to new, a transposed one's from new to old.
        const int time = is_transposed ? 1 - t / per_age : t / per_age;
        for (int o = 0; o < rows; o++) {
          for (int c = 0; c < padded[t].c_in; c++, at++) {
            const bool is_there = o < c_out && c < sources[t].c_in;
            const int channel = source * c_first + c;
            const size_t pair = is_transposed ? (static_cast<size_t>(part * c_all + channel) * static_cast<size_t>(c_out) + static_cast<size_t>(o))
                                              : (static_cast<size_t>(part * c_out + o) * static_cast<size_t>(c_all) + static_cast<size_t>(channel));
            const size_t i = (pair * kKernelF + static_cast<size_t>(kernel)) * kKernelT + static_cast<size_t>(time);
            if (is_int8) {
              q[part][at] = is_there ? tensors.weight.int8_at(i) : int8_t{0};
            } else {
              const float value = is_there ? tensors.weight.at(i) : 0.0f;
              w[part][at] = round ? to_bf16(value) : value;
            }
          }
        }
      }
    }
  }
  float affine[4][1024];
  for (int i = 0; packed && i < 4; i++) {
    for (int o = 0; o < rows; o++) affine[i][o] = o < c_out ? (i < 2 ? tensors.gain : tensors.bias).at(static_cast<size_t>((i & 1) * c_out + o)) : 0.0f;
  }

  ConvSpec spec = {};
  spec.c_out = rows;
  spec.columns = plan->columns;
  spec.n_taps = n;
  spec.sources = padded;
  for (int part = 0; part < 2; part++) {
    spec.w[part] = is_int8 ? nullptr : w[part];
    spec.q[part] = is_int8 ? q[part] : nullptr;
    spec.gain[part] = affine[part];
    spec.bias[part] = affine[2 + part];
  }
  spec.slope = tensors.slope;
  spec.inv_scale = 1.0f / tensors.out_scale;
  spec.algorithm = algorithm_;

  size_t bytes = 0;
  if (!is_plain) {
    spec.takes_turns = is_fast_;
    if (is_fast_) plan_turns(plan);
    const size_t size = row_->conv_bytes(&spec);
    if (packed) row_->pack_conv(&spec, packed->take(size), &plan->conv);
    return Arena::padded(size);
  }
  bytes += Arena::padded(sizeof(Source) * static_cast<size_t>(n));
  if (packed) {
    Source* kept = packed->take<Source>(static_cast<size_t>(n));
    for (int t = 0; t < n; t++) kept[t] = padded[t];
    spec.sources = kept;
  }
  for (int part = 0; part < 2; part++) {
    spec.w[part] = keep(spec.w[part], static_cast<int>(numbers), static_cast<int>(numbers), packed, &bytes);
    spec.gain[part] = keep(spec.gain[part], rows, rounded(rows), packed, &bytes);
    spec.bias[part] = keep(spec.bias[part], rows, rounded(rows), packed, &bytes);
  }
  plan->spec = spec;
  return bytes;
}

size_t Network::place_recurrent(const WeightFile& file, int layer, Arena* packed, void* scratch) {
  const int hidden = shape_.hidden[layer], rows = shape_.gates() * hidden, frequencies = layer == 0 ? shape_.frequencies(shape_.depth) : 1;
  const int channels = layer == 0 ? shape_.c_enc[shape_.depth] : shape_.hidden[layer - 1], width = channels * frequencies;
  const bool is_int8 = row_->format == EK_I8;
  RecurrentPlan& plan = recurrent_[layer];
  plan.hidden = rounded(hidden);
  plan.inv_scale = 1.0f / file.recurrent[layer].out_scale;

  int segment[kMaxFrequencies];
  for (int f = 0; f < frequencies; f++) segment[f] = channels;
  const size_t n_x = static_cast<size_t>(rows) * static_cast<size_t>(width), n_h = static_cast<size_t>(rows) * static_cast<size_t>(hidden), n_rows = static_cast<size_t>(rows);
  float* tables = static_cast<float*>(scratch);  // scale_x, scale_h, bias_x, bias_h
  float* w = tables + 4 * n_rows;
  int8_t* q = reinterpret_cast<int8_t*>(w);
  size_t bytes = 0;
  for (int part = 0; part < 2; part++) {
    const NetTensors& net = file.recurrent[layer].net[part];
    if (packed) {
      const Tensor* from[4] = {&net.scale_x, &net.scale_h, &net.b_x, &net.b_h};
      for (size_t i = 0; i < 4; i++) {
        for (size_t r = 0; r < n_rows; r++) tables[i * n_rows + r] = from[i]->count ? from[i]->at(r) : 1.0f;
      }
      // The file has features as channel * F + f; a frame has them frequency by frequency.
      for (size_t r = 0; r < n_rows; r++) {
        for (int f = 0; f < frequencies; f++) {
          for (int c = 0; c < channels; c++) {
            const size_t to = r * static_cast<size_t>(width) + static_cast<size_t>(f * channels + c), i = r * static_cast<size_t>(width) + static_cast<size_t>(c * frequencies + f);
            if (is_int8) {
              q[to] = net.w_x.int8_at(i);
            } else {
              w[to] = round_weights_ ? to_bf16(net.w_x.at(i)) : net.w_x.at(i);
            }
          }
        }
      }
      for (size_t i = 0; i < n_h; i++) {
        if (is_int8) {
          q[n_x + i] = net.w_h.int8_at(i);
        } else {
          w[n_x + i] = round_weights_ ? to_bf16(net.w_h.at(i)) : net.w_h.at(i);
        }
      }
    }
    CellSpec spec = {};
    spec.kind = shape_.is_gru ? EK_GRU : EK_LSTM;
    spec.hidden = hidden;
    spec.n_segments = frequencies;
    spec.segment = segment;
    if (is_int8) {
      spec.q_x = q;
      spec.q_h = q + n_x;
    } else {
      spec.w_x = w;
      spec.w_h = w + n_x;
    }
    spec.scale_x = tables;
    spec.scale_h = tables + n_rows;
    spec.bias_x = tables + 2 * n_rows;
    spec.bias_h = tables + 3 * n_rows;
    const size_t size = row_->cell_bytes(&spec);
    if (packed) row_->pack_cell(&spec, packed->take(size), &plan.cell[part]);
    bytes += Arena::padded(size);
  }
  return bytes;
}

// One dense layer for every frequency: its rows are then the channels of one row of the frame.
size_t Network::place_projection(const WeightFile& file, Arena* packed, void* scratch) {
  const int n = shape_.depth, frequencies = shape_.frequencies(n), channels = shape_.c_dec[0], rows = rounded(channels), hidden = shape_.hidden[shape_.rnn_layers - 1];
  const bool is_int8 = row_->format == EK_I8;
  projection_inv_scale_ = 1.0f / file.projection_scale;
  float* tables = static_cast<float*>(scratch);  // scale, bias
  float* w = tables + 2 * rows;
  int8_t* q = reinterpret_cast<int8_t*>(w);
  size_t bytes = 0;
  for (int part = 0; part < 2; part++) {
    const DenseTensors& dense = file.projection[part];
    bytes += Arena::padded(sizeof(Dense) * static_cast<size_t>(frequencies));
    if (packed) projection_[part] = packed->take<Dense>(static_cast<size_t>(frequencies));
    for (int f = 0; f < frequencies; f++) {
      for (int c = 0; packed && c < rows; c++) {
        const bool is_there = c < channels;
        const size_t row = static_cast<size_t>(c * frequencies + f);
        tables[c] = !is_there ? 0.0f : dense.scale.count ? dense.scale.at(row) : 1.0f;
        tables[rows + c] = is_there ? dense.bias.at(row) : 0.0f;
        for (int i = 0; i < hidden; i++) {
          const size_t to = static_cast<size_t>(c) * static_cast<size_t>(hidden) + static_cast<size_t>(i), from = row * static_cast<size_t>(hidden) + static_cast<size_t>(i);
          if (is_int8) {
            q[to] = is_there ? dense.weight.int8_at(from) : int8_t{0};
          } else {
            const float value = is_there ? dense.weight.at(from) : 0.0f;
            w[to] = round_weights_ ? to_bf16(value) : value;
          }
        }
      }
      const DenseSpec spec = {rows, hidden, is_int8 ? nullptr : w, is_int8 ? q : nullptr, tables, tables + rows};
      const size_t size = row_->dense_bytes(&spec);
      if (packed) row_->pack_dense(&spec, packed->take(size), &projection_[part][f]);
      bytes += Arena::padded(size);
    }
  }
  return bytes;
}

// ---- one frame ----

size_t Network::thread_bytes() const {
  size_t bytes = 2 * Arena::padded(4 * static_cast<size_t>(rounded(shape_.c_dec[0])));
  for (int l = 0; l < shape_.rnn_layers; l++) bytes += 4 * Arena::padded(4 * static_cast<size_t>(rounded(shape_.hidden[l])));
  return bytes + Arena::padded(2 * sizeof(void*));
}

size_t Network::step_bytes(int threads) const {
  const size_t pointers = Arena::padded(sizeof(void*) * static_cast<size_t>(shape_.frequencies(shape_.depth)));
  return 2 * pointers + static_cast<size_t>(threads) * Arena::padded(thread_bytes());
}

void Network::prepare(Step* step, char* state, int threads, Arena* arena) const {
  step->network = this;
  step->state = state;
  for (const void**& features : step->features) features = arena->take<const void*>(static_cast<size_t>(shape_.frequencies(shape_.depth)));
  for (int t = 0; t < threads; t++) step->scratch[t] = arena->take<char>(thread_bytes());
}

void Network::reset(char* state) const {
  memset(state, 0, floats_bytes_);
  memset(state + floats_bytes_, row_->zero, row_bytes_ - floats_bytes_);
  memset(state + row_bytes_, 0, state_bytes_ - row_bytes_);
}

bool Network::is_sane(const char* state) const {
  const auto finite = [&](size_t from, size_t to, size_t width, uint32_t exponent) {
    for (size_t i = from; i < to; i += width) {
      uint32_t bits = 0;
      memcpy(&bits, state + i, width);  // little endian, as every target
      if ((bits & exponent) == exponent) return false;
    }
    return true;
  };
  if (!finite(0, floats_bytes_, 4, 0x7f800000u)) return false;
  for (size_t i = row_bytes_; i < sums_bytes_; i += kSumBytes) {  // a step adds far less than 2^30 to them
    int32_t sum;
    memcpy(&sum, state + i, sizeof sum);
    if (sum < -(1 << 30) || sum > 1 << 30) return false;
  }
  for (size_t i = sums_bytes_; i < state_bytes_; i++) {
    if (static_cast<unsigned char>(state[i]) > 1) return false;
  }
  if (row_->format == EK_F32) return finite(floats_bytes_, row_bytes_, 4, 0x7f800000u);
  if (row_->format == EK_BF16) return finite(floats_bytes_, row_bytes_, 2, 0x7f80u);
  if (row_->element_bytes == 2) {  // a row that widens its int8, and changes with it
    const int most = is_fast_ ? 254 : 127;
    for (size_t i = floats_bytes_; i < row_bytes_; i += 2) {
      int16_t q;
      memcpy(&q, state + i, sizeof q);
      if (q < -most || q > most) return false;
    }
    return true;
  }
  const unsigned char never = static_cast<unsigned char>(row_->zero ^ 0x80);  // -128 as this row stores it
  return memchr(state + floats_bytes_, never, row_bytes_ - floats_bytes_) == nullptr;
}

// Of the frame that came `age` steps before the one in slot `newest`.
int Network::slot_of(int ring, int newest, int age) const { return newest < age ? newest - age + rings_[ring].frames : newest - age; }

void* Network::at(const Step& step, int ring, int age) const {
  const Ring& r = rings_[ring];
  return step.state + r.offset + static_cast<size_t>(slot_of(ring, step.slot[ring], age)) * r.frame_bytes + kPad * r.row_bytes;
}

void* Network::at_clock(char* state, uint64_t clock, int ring, int age) const {
  const Ring& r = rings_[ring];
  const int newest = static_cast<int>(clock % static_cast<uint64_t>(r.frames));
  return state + r.offset + static_cast<size_t>(slot_of(ring, newest, age)) * r.frame_bytes + kPad * r.row_bytes;
}

void Network::clear(const Step& step, int ring) const {
  const Ring& r = rings_[ring];
  if (!r.frame_bytes) return;
  memset(static_cast<char*>(at(step, ring, 0)) - kPad * r.row_bytes, r.floats ? 0 : row_->zero, r.frame_bytes);
  write_changes(step, ring);
}

// Of a ring whose newest frame is there and has not had them written beside it.
void Network::write_changes(const Step& step, int ring) const {
  const Ring& r = rings_[ring];
  if (!rings_[change_ring(ring)].frame_bytes) return;
  const char *now = static_cast<const char*>(at(step, ring, 0)), *before = static_cast<const char*>(at(step, ring, 1));
  char* change = static_cast<char*>(at(step, change_ring(ring), 0));
  const int channels = static_cast<int>(r.row_bytes / static_cast<size_t>(planes_ * row_->element_bytes)), rows = static_cast<int>(r.frame_bytes / r.row_bytes) - 2 * kPad;
  for (int f = 0; f < rows; f++) {
    const size_t row = static_cast<size_t>(f) * r.row_bytes;
    if (!row_->change_row(now + row, before + row, change + row, channels, planes_)) say_beyond(beyond(step, ring, 0));
  }
}

unsigned char* Network::beyond(const Step& step, int ring, int age) const {
  return reinterpret_cast<unsigned char*>(step.state) + rings_[ring].beyond + slot_of(ring, step.slot[ring], age);
}

// Whether all changes that a phase reads, or read so many steps ago, are whole.
bool Network::fits(const Step& step, const PhasePlan& plan, int steps_ago) const {
  for (const Newest& frame : plan.newest) {
    if (*beyond(step, frame.ring, frame.age + steps_ago)) return false;
  }
  return true;
}

// Where the newest frame of a ring is written, `phases` rows apart from `phase` on.
Out Network::out_to(const Step& step, int ring, int phase, int phases) const {
  const Ring& r = rings_[ring];
  const size_t row = static_cast<size_t>(phase) * r.row_bytes;
  char* to = static_cast<char*>(at(step, ring, 0)) + row;
  const int planes = r.floats ? 2 : planes_, bytes = r.floats ? 4 : row_->element_bytes, channels = static_cast<int>(r.row_bytes / static_cast<size_t>(planes * bytes));
  Out out = {r.floats ? nullptr : to, r.floats ? reinterpret_cast<float*>(to) : nullptr, phases * planes_ * channels, phases * 2 * channels, channels};
  if (rings_[change_ring(ring)].frame_bytes) {
    out.change = static_cast<char*>(at(step, change_ring(ring), 0)) + row;
    out.before = static_cast<const char*>(at(step, ring, 1)) + row;
    out.beyond = beyond(step, ring, 0);
  }
  return out;
}

void Network::point(const Step& step, const Reads& reads, Tap* taps) const {
  for (int t = 0; t < reads.n_taps; t++) taps[t].x = static_cast<const char*>(at(step, reads.taps[t].ring, reads.taps[t].age)) + reads.taps[t].offset;
}

void Network::run(Step* step, Team* team, uint64_t clock, float* mask, int tail) const {
  step->mask = mask;
  step->tail = tail;
  step->parity = static_cast<int>(clock & 1);
  for (int r = 0; r < kMaxRings; r++) step->slot[r] = rings_[r].frame_bytes ? static_cast<int>(clock % static_cast<uint64_t>(rings_[r].frames)) : 0;
  for (int r = 0; r < kMaxFrames; r++) {
    if (rings_[change_ring(r)].frame_bytes) *beyond(*step, r, 0) = 0;
  }
  const int deepest = encoder_ring(shape_.depth - 1);
  const char* row = static_cast<const char*>(at(*step, deepest, 0));
  const size_t plane = rings_[deepest].row_bytes / static_cast<size_t>(planes_);
  for (int f = 0; f < shape_.frequencies(shape_.depth); f++, row += rings_[deepest].row_bytes) {
    step->features[0][f] = row;
    step->features[1][f] = row + plane;
  }
  team->run(work, step);
}

void Network::work(void* context, Team* team, int thread) {
  Step* step = static_cast<Step*>(context);
  step->network->frame(*step, team, thread);
}

void Network::frame(Step& step, Team* team, int thread) const {
  const int n = shape_.depth, threads = team->threads();
  if (step.tail == 0) {
    for (int i = 0; i < n; i++) {
      encode(step, i, thread, threads);
      team->meet();
    }
    char* scratch = step.scratch[thread];
    const void* const* x[2] = {step.features[0], step.features[1]};
    const void* const* y = nullptr;
    for (int l = 0; l < shape_.rnn_layers; l++) {
      y = recur(step, l, x, team, thread, scratch);
      x[0] = y;
      x[1] = y + 1;
      scratch += 4 * Arena::padded(4 * static_cast<size_t>(recurrent_[l].hidden));
    }
    project(step, y, thread, threads, scratch);
  } else if (thread == 0) {
    for (int i = 0; i < n; i++) clear(step, encoder_ring(i));
    clear(step, encoder0_floats_ring());
    clear(step, decoder_ring(0));
  }
  team->meet();
  for (int j = 0; j < n; j++) {
    // Behind the clip's end decoder j still has one real frame to give at the (j + 1)-th step; then the next one's input is padding too.
    if (step.tail <= j + 1) {
      decode(step, j, thread, threads);
    } else if (thread == 0) {
      clear(step, decoder_ring(j + 1));
    }
    if (j < n - 1) team->meet();
  }
}

void Network::encode(const Step& step, int layer, int thread, int threads) const {
  const PhasePlan& plan = encoder_[layer];
  Out out = out_to(step, encoder_ring(layer), 0, 1);
  if (layer > 0) return run_conv(step, plan, layer, &out, thread, threads);
  if (has_encoder0_floats_) {
    out.floats = static_cast<float*>(at(step, encoder0_floats_ring(), 0));
    out.floats_step = 2 * out.channels;
  }
  Tap taps[kMaxTaps];
  point(step, plan.plain, taps);
  row_->first(&plan.spec, taps, &out, part_of(plan.columns, thread, threads), part_of(plan.columns, thread + 1, threads));
}

// Neighbouring layers take the dear turn in different steps, so that all steps cost alike. Where a change does not fit, this step is plain; and
// so is the next one where this one would have kept sums for it.
void Network::run_conv(const Step& step, const PhasePlan& plan, int layer, Out* out, int thread, int threads) const {
  Tap taps[kMaxTaps];
  if (is_fast_) {
    const Turn turn = (step.parity + layer) & 1 ? EK_REST : EK_WHOLE;
    out->turn = fits(step, plan, 0) && (turn == EK_WHOLE || fits(step, plan, 1)) ? turn : EK_PLAIN;
    out->kept = step.state + plan.kept;
  }
  point(step, out->turn == EK_PLAIN ? plan.plain : out->turn == EK_WHOLE ? plan.whole : plan.rest, taps);
  row_->conv(&plan.conv, taps, out, part_of(plan.conv.items, thread, threads), part_of(plan.conv.items, thread + 1, threads));
}

// Returns the complex output, real and imaginary, in the row's format; every thread makes its own, which saves a meeting.
const void* const* Network::recur(const Step& step, int layer, const void* const* x[2], Team* team, int thread, char* scratch) const {
  const RecurrentPlan& plan = recurrent_[layer];
  const int now = step.parity, before = 1 - now, items = plan.cell[0].items, threads = team->threads();
  const auto floats = [&](size_t offset) { return reinterpret_cast<float*>(step.state + offset); };
  // The items of R, then those of I.
  const int first = part_of(2 * items, thread, threads), last = part_of(2 * items, thread + 1, threads);
  for (int part = 0; part < 2; part++) {
    const int from = first > part * items ? first - part * items : 0, to = last - part * items < items ? last - part * items : items;
    if (from >= to) continue;
    const CellState& state = plan.state[part];
    CellRun run = {};
    for (int k = 0; k < 2; k++) {
      run.x[k] = x[k];
      run.h_old[k] = step.state + state.h[before][k];
      run.h_new[k] = step.state + state.h[now][k];
      run.h_f32_old[k] = floats(state.h_f32[before][k]);
      run.h_f32[k] = floats(state.h_f32[now][k]);
      run.c[k] = floats(state.c[k]);
    }
    row_->cell(&plan.cell[part], &run, from, to);
  }
  team->meet();

  const size_t part_bytes = Arena::padded(4 * static_cast<size_t>(plan.hidden));
  float *re = reinterpret_cast<float*>(scratch), *im = reinterpret_cast<float*>(scratch + part_bytes);
  const float *r_re = floats(plan.state[0].h_f32[now][0]), *r_im = floats(plan.state[0].h_f32[now][1]);
  const float *i_re = floats(plan.state[1].h_f32[now][0]), *i_im = floats(plan.state[1].h_f32[now][1]);
  for (int u = 0; u < plan.hidden; u++) {
    re[u] = r_re[u] - i_im[u];
    im[u] = r_im[u] + i_re[u];
  }
  char* y[2] = {scratch + 2 * part_bytes, scratch + 3 * part_bytes};
  row_->store(re, plan.inv_scale, y[0], plan.hidden);
  row_->store(im, plan.inv_scale, y[1], plan.hidden);
  // The sums are spent: their place holds the pointers.
  const void** pointers = reinterpret_cast<const void**>(scratch);
  pointers[0] = y[0];
  pointers[1] = y[1];
  return pointers;
}

void Network::project(const Step& step, const void* const x[2], int thread, int threads, char* scratch) const {
  const int frequencies = shape_.frequencies(shape_.depth), channels = rounded(shape_.c_dec[0]);
  float *re = reinterpret_cast<float*>(scratch), *im = reinterpret_cast<float*>(scratch + Arena::padded(4 * static_cast<size_t>(channels)));
  for (int f = part_of(frequencies, thread, threads); f < part_of(frequencies, thread + 1, threads); f++) {
    row_->dense(&projection_[0][f], x[0], re, 0, projection_[0][f].items);
    row_->dense(&projection_[1][f], x[1], im, 0, projection_[1][f].items);
    const Out out = out_to(step, decoder_ring(0), f, 1);
    row_->store_row(re, im, projection_inv_scale_, out.frame, channels, planes_);
    if (out.change && !row_->change_row(out.frame, out.before, out.change, channels, planes_)) say_beyond(out.beyond);
  }
}

void Network::decode(const Step& step, int layer, int thread, int threads) const {
  const int n = shape_.depth;
  for (int phase = 0; phase < 2; phase++) {
    const PhasePlan& plan = decoder_[layer][phase];
    // Who gets the smaller share of one phase gets the larger of the other.
    const int part = phase == 0 ? thread : threads - 1 - thread;
    if (layer < n - 1) {
      Out out = out_to(step, decoder_ring(layer + 1), phase, 2);
      run_conv(step, plan, n + layer, &out, part, threads);
      continue;
    }
    Tap taps[kMaxTaps];
    point(step, plan.plain, taps);
    row_->last(&plan.spec, taps, step.mask + phase, step.mask + shape_.bins() + phase, part_of(plan.columns, part, threads), part_of(plan.columns, part + 1, threads));
  }
}

}  // namespace ek
