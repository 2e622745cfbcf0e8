// What one thread of each kernel does between two barriers. The kernels (kernels.cuh) call these functions with a barrier between
// them; the CPU emulation calls them for every thread in turn. `shared` is the block's shared memory.
#ifndef EK_CUDA_THREADS_H
#define EK_CUDA_THREADS_H

#include "numbers.h"

namespace ek {
namespace cuda {

// ---- partial sums of a block in shared memory ----

// Every thread leaves `values` sums; those of threads that differ in `split` alone belong together. They stand as [value][thread] with
// a pitch of one more than the threads, so that neither leaving nor gathering them collides in a bank.
constexpr int kPitch = kThreads + 1;

struct Gather {
  Cut cut;
  int values;
  EK_BOTH int outputs_log2() const { return kLog2Threads - cut.splits_log2; }  // of one value
  EK_BOTH int outputs() const { return values << outputs_log2(); }
  // Threads that add up one output together, first pass.
  EK_BOTH int parts() const {
    const int splits = 1 << cut.splits_log2, spare = kThreads / outputs();
    return spare < 1 ? 1 : spare < splits ? spare : splits;
  }
  // Place of one split's share of an output. Outputs count lanes fastest, then groups, then values.
  EK_BOTH int at(int output, int split) const {
    const int value = output >> outputs_log2(), thread = output & ((1 << outputs_log2()) - 1);
    const int lane = thread & ((1 << cut.lanes_log2) - 1), group = thread >> cut.lanes_log2;
    return value * kPitch + (((group << cut.splits_log2) + split) << cut.lanes_log2) + lane;
  }
  static constexpr int kLog2Threads = 8;
};
static_assert(1 << Gather::kLog2Threads == kThreads, "");

EK_BOTH void add(Complex& sum, Complex v) {
  sum.re += v.re;
  sum.im += v.im;
}
EK_BOTH void add(float& sum, float v) { sum += v; }

// First pass: splits fall into parts(); the sum of each stands in the place of its first split, which nobody else reads.
template <class T>
EK_BOTH void gather_parts(const Gather& g, int thread, T* shared) {
  const int outputs = g.outputs(), parts = g.parts(), splits = 1 << g.cut.splits_log2;
  for (int work = thread; work < outputs * parts; work += kThreads) {
    const int output = work % outputs, part = work / outputs;
    T sum = shared[g.at(output, part)];
    for (int split = part + parts; split < splits; split += parts) add(sum, shared[g.at(output, split)]);
    shared[g.at(output, part)] = sum;
  }
}
// Second pass.
template <class T>
EK_BOTH T gathered(const Gather& g, int output, const T* shared) {
  T sum = shared[g.at(output, 0)];
  for (int part = 1; part < g.parts(); ++part) add(sum, shared[g.at(output, part)]);
  return sum;
}

// ---- convolution: encoder layers, both phases of decoder layers, projection ----

EK_BOTH void multiply_add(Complex& sum, Complex w, Complex x) {
  sum.re += w.re * x.re;
  sum.re -= w.im * x.im;
  sum.im += w.re * x.im;
  sum.im += w.im * x.re;
}
// The projection has two real nets, one for each part.
EK_BOTH void multiply_add_parts(Complex& sum, Complex w, Complex x) {
  sum.re += w.re * x.re;
  sum.im += w.im * x.im;
}

// In: number format of the input and the weights, Out: of the output. CT channels by NT columns are summed in registers.
template <class In, class Out, bool kParts, int CT, int NT>
struct ConvThread {
  static constexpr int kValues = CT * NT;
  // Loads in flight hide latency where a thread sums little; where it sums much, registers are dearer.
  static constexpr int kUnroll = kValues <= 4 ? 8 : kValues <= 8 ? 4 : 2;
  static constexpr int kShared = kValues * kPitch;  // Complex numbers
  using Shared = Complex;

  EK_BOTH static Gather gather(const Conv& p) { return Gather{p.cut, kValues}; }

  EK_BOTH static void sum(const Conv& p, int block, int thread, Complex* shared) {
    const Block at = block_of(p.grid, block);
    const Phase phase = phase_of(p.kind, at.phase);
    const Place place = place_of(p.cut, thread);
    const int frames = frames_of(p.kind);
    const int splits = 1 << p.cut.splits_log2;
    const int tile_channels = CT << p.cut.lanes_log2;
    const int first_column = ((at.column_tile << p.cut.groups_log2) + place.group) * NT;

    Complex sums[NT][CT];
    for (int j = 0; j < NT; ++j)
      for (int i = 0; i < CT; ++i) sums[j][i] = Complex{0.0f, 0.0f};

    const Pair<In>* weights = static_cast<const Pair<In>*>(p.weights[at.phase]) +
                              packed_weight(at.channel_tile, p.terms[at.phase], 0, tile_channels, place.lane * CT);
    for (int s = 0; s < p.n_sources; ++s) {
      const Source& source = p.sources[s];
      const Pair<In>* x = static_cast<const Pair<In>*>(source.ring.base);
      int newest[NT], older[NT];
      for (int j = 0; j < NT; ++j) {
        const int n = first_column + j;
        const Column column = column_of(n < p.streams * p.columns ? n : 0, p.columns);  // columns too many are summed and dropped
        const int past = p.past ? p.past[column.stream] : kLive;
        newest[j] = window_start(source, phase, p.frame, 0, column, past, p.lag);
        older[j] = window_start(source, phase, p.frame, 1, column, past, p.lag);
      }
      const int window = window_pairs(phase, source.ring), terms = frames * window;
#if defined(__CUDA_ARCH__)
#pragma unroll kUnroll
#endif
      for (int term = place.split; term < terms; term += splits) {
        const Packet<Pair<In>, CT> w = *reinterpret_cast<const Packet<Pair<In>, CT>*>(weights + term * tile_channels);
        const bool old = term >= window;
        const int i_in = old ? term - window : term;
        for (int j = 0; j < NT; ++j) {
          const Complex v = widen(x[(old ? older[j] : newest[j]) + i_in]);
          for (int i = 0; i < CT; ++i) {
            if (kParts)
              multiply_add_parts(sums[j][i], widen(w.at[i]), v);
            else
              multiply_add(sums[j][i], widen(w.at[i]), v);
          }
        }
      }
      weights += terms * tile_channels;
    }
    for (int j = 0; j < NT; ++j)
      for (int i = 0; i < CT; ++i) shared[(j * CT + i) * kPitch + thread] = sums[j][i];
  }

  // Batch norm, bias and PReLU on what the parts sum up to.
  EK_BOTH static void finish(const Conv& p, int block, int thread, const Complex* shared) {
    const Block at = block_of(p.grid, block);
    const Phase phase = phase_of(p.kind, at.phase);
    const Gather g = gather(p);
    for (int output = thread; output < g.outputs(); output += kThreads) {
      const int value = output >> g.outputs_log2(), other = output & ((1 << g.outputs_log2()) - 1);
      const int lane = other & ((1 << p.cut.lanes_log2) - 1), group = other >> p.cut.lanes_log2;
      const int channel = ((at.channel_tile << p.cut.lanes_log2) + lane) * CT + value % CT;
      const int n = ((at.column_tile << p.cut.groups_log2) + group) * NT + value / CT;
      if (channel >= p.c_out || n >= p.streams * p.columns) continue;
      const Column column = column_of(n, p.columns);
      const Complex sum = gathered(g, output, shared);
      Out* y = static_cast<Out*>(p.target.base) +
               target_of(p.target, p.frame, column.stream, output_row(phase, column.m), channel);
      store(y, leaky(p.gain[channel] * sum.re + p.bias[channel], p.slope));
      store(y + p.target.part, leaky(p.gain[p.c_out + channel] * sum.im + p.bias[p.c_out + channel], p.slope));
    }
  }
};

// ---- complex LSTM or GRU layer ----

// A layer has two nets, R and I, and runs each on the real and on the imaginary input: four runs with states of their own.
// A thread sums four gates of both nets for one hidden unit of NT streams, for both inputs: every weight is used 2 * NT times.
template <class Number, int NT>
struct RecurrentThread {
  static constexpr int kGates = 4, kRuns = 4;
  static constexpr int kPerUnit = kGates * kRuns;
  static constexpr int kValues = NT * kPerUnit;
  static constexpr int kShared = kValues * kPitch;  // floats
  using Shared = float;

  EK_BOTH static Gather gather(const Recurrent& p) { return Gather{p.cut, kValues}; }
  EK_BOTH static int parity_of(unsigned frame) { return static_cast<int>(frame & 1u); }

  EK_BOTH static void sum(const Recurrent& p, int block, int thread, float* shared) {
    const Block at = block_of(p.grid, block);
    const Place place = place_of(p.cut, thread);
    const int splits = 1 << p.cut.splits_log2, units = 1 << p.cut.lanes_log2;
    const int first_stream = ((at.column_tile << p.cut.groups_log2) + place.group) * NT;

    float sums[NT][kGates][kRuns];
    for (int j = 0; j < NT; ++j)
      for (int g = 0; g < kGates; ++g)
        for (int r = 0; r < kRuns; ++r) sums[j][g][r] = 0.0f;

    int x_start[NT];
    const float* h[NT];
    for (int j = 0; j < NT; ++j) {
      const int stream = first_stream + j < p.streams ? first_stream + j : 0;
      x_start[j] = pair_of(p.x, stream, slot_of(p.x, p.frame, 0), 0);
      h[j] = p.h + stream * p.h_stride + (1 - parity_of(p.frame)) * p.hidden * kRuns;
    }
    using Weights = Packet<Number, 2 * kGates>;
    const Weights* weights = static_cast<const Weights*>(p.weights) +
                             packed_weight(at.channel_tile, p.inputs + p.hidden, 0, units, place.lane);
    const Pair<Number>* x = static_cast<const Pair<Number>*>(p.x.base);
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (int k = place.split; k < p.inputs; k += splits) {
      const Weights w = weights[k * units];
      for (int j = 0; j < NT; ++j) {
        const Complex v = widen(x[x_start[j] + k]);
        for (int g = 0; g < kGates; ++g) {
          const float r = to_float(w.at[g]), i = to_float(w.at[kGates + g]);
          sums[j][g][0] += r * v.re;
          sums[j][g][1] += r * v.im;
          sums[j][g][2] += i * v.re;
          sums[j][g][3] += i * v.im;
        }
      }
    }
    weights += p.inputs * units;
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int k = place.split; k < p.hidden; k += splits) {
      const Weights w = weights[k * units];
      for (int j = 0; j < NT; ++j) {
        const Packet<float, 4> v = *reinterpret_cast<const Packet<float, 4>*>(h[j] + k * kRuns);
        for (int g = 0; g < kGates; ++g) {
          const float r = to_float(w.at[g]), i = to_float(w.at[kGates + g]);
          sums[j][g][0] += r * v.at[0];
          sums[j][g][1] += r * v.at[1];
          sums[j][g][2] += i * v.at[2];
          sums[j][g][3] += i * v.at[3];
        }
      }
    }
    for (int j = 0; j < NT; ++j)
      for (int g = 0; g < kGates; ++g)
        for (int r = 0; r < kRuns; ++r) shared[((j * kGates + g) * kRuns + r) * kPitch + thread] = sums[j][g][r];
  }

  // One unit of one run of one stream; `other` counts lanes, then groups.
  struct Item {
    int output0;  // of gate 0 among the gathered outputs
    int stream, unit, run;
  };
  EK_BOTH static int items(const Recurrent& p) { return NT * kRuns << gather(p).outputs_log2(); }
  EK_BOTH static Item item_of(const Recurrent& p, const Block& at, int work) {
    const int per_value_log2 = gather(p).outputs_log2();
    const int other = work & ((1 << per_value_log2) - 1), value = work >> per_value_log2;
    const int run = value % kRuns, j = value / kRuns;
    const int lane = other & ((1 << p.cut.lanes_log2) - 1), group = other >> p.cut.lanes_log2;
    return Item{((j * kPerUnit + run) << per_value_log2) + other, ((at.column_tile << p.cut.groups_log2) + group) * NT + j,
                (at.channel_tile << p.cut.lanes_log2) + lane, run};
  }

  // Gates and states of every item; h also goes where gate 0 stood, for the next pass.
  EK_BOTH static void cell(const Recurrent& p, int block, int thread, float* shared) {
    const Block at = block_of(p.grid, block);
    const Gather gathering = gather(p);
    for (int work = thread; work < items(p); work += kThreads) {
      const Item item = item_of(p, at, work);
      if (item.stream >= p.streams || item.unit >= p.hidden) continue;
      const int net = item.run / 2;
      const float* bias = p.bias + (net * p.hidden + item.unit) * kGates;
      float gate[kGates];
      for (int g = 0; g < kGates; ++g)
        gate[g] = gathered(gathering, item.output0 + (g * kRuns << gathering.outputs_log2()), shared) + bias[g];
      float* state = p.h + item.stream * p.h_stride;
      const int place = item.unit * kRuns + item.run, frame_floats = p.hidden * kRuns;
      float h;
      if (p.gru) {
        const float r = sigmoid(gate[0]), z = sigmoid(gate[1]), n = tangent_h(gate[2] + r * gate[3]);
        const float old = state[(1 - parity_of(p.frame)) * frame_floats + place];
        h = (1.0f - z) * n + z * old;
      } else {
        float* c = p.c + item.stream * p.c_stride + place;
        const float kept = sigmoid(gate[1]) * *c + sigmoid(gate[0]) * tangent_h(gate[2]);
        *c = kept;
        h = sigmoid(gate[3]) * tangent_h(kept);
      }
      state[parity_of(p.frame) * frame_floats + place] = h;
      shared[gathering.at(item.output0, 0)] = h;
    }
  }

  // re = R(re) - I(im), im = R(im) + I(re).
  EK_BOTH static void combine(const Recurrent& p, int block, int thread, const float* shared) {
    const Block at = block_of(p.grid, block);
    const Gather gathering = gather(p);
    const int step = 1 << gathering.outputs_log2();
    for (int work = thread; work < items(p); work += kThreads) {
      const Item item = item_of(p, at, work);
      if (item.run != 0 || item.stream >= p.streams || item.unit >= p.hidden) continue;
      float run[kRuns];
      for (int r = 0; r < kRuns; ++r) run[r] = shared[gathering.at(item.output0 + r * step, 0)];
      Number* y = static_cast<Number*>(p.target.base) + target_of(p.target, p.frame, item.stream, 0, item.unit);
      store(y, run[0] - run[3]);
      store(y + p.target.part, run[1] + run[2]);
    }
  }
};

// ---- intake ----

EK_BOTH bool intake_thread(const Intake& p, int number) {
  const int bins = p.ring.bins;
  if (number >= p.streams * bins) return true;
  const int stream = number / bins, f = number % bins;
  const float* spectrum = p.spectrum + stream * 2 * bins + f;
  Complex v{spectrum[0], spectrum[bins]};
  const bool fine = is_finite(v.re) && is_finite(v.im);
  if (!is_finite(v.re)) v.re = 0.0f;
  if (!is_finite(v.im)) v.im = 0.0f;
  static_cast<Complex*>(p.ring.base)[pair_of(p.ring, stream, slot_of(p.ring, p.frame, 0), f)] = v;
  return fine;
}

// ---- complex convolution on whole tensors ----

// A thread sums CT output channels at one position; positions count time fastest, so a warp reads neighbouring frames. The weights of
// `chunk` input channels stand in shared memory as [channel of chunk][kernel tap][channel of tile].
template <class Number, int CT>
struct TensorThread {
  static constexpr int kShared = 4096;  // Complex numbers, 32 KiB
  EK_BOTH static int positions(const Tensor& p) { return p.n * p.f_out * p.t_out; }
  EK_BOTH static int taps(const Tensor& p) { return p.kernel_f * p.kernel_t; }

  EK_BOTH static void stage(const Tensor& p, int tile, int thread, int first_in, Complex* shared) {
    const Number* w = static_cast<const Number*>(p.w);
    const int count = p.chunk * taps(p) * CT;
    for (int i = thread; i < count; i += kThreads) {
      const int out = tile * CT + i % CT, tap = i / CT % taps(p), in = first_in + i / (CT * taps(p));
      const bool there = out < p.c_out && in < p.c_in;
      const int kf = tap / p.kernel_t, kt = tap % p.kernel_t;
      shared[i] = there ? Complex{to_float(w[tensor_weight(p, 0, out, in, kf, kt)]), to_float(w[tensor_weight(p, 1, out, in, kf, kt)])}
                        : Complex{0.0f, 0.0f};
    }
  }

  EK_BOTH static void sum(const Tensor& p, int position, int first_in, const Complex* shared, Complex (&sums)[CT]) {
    if (position >= positions(p)) return;
    const int t = position % p.t_out, f = position / p.t_out % p.f_out, n = position / (p.t_out * p.f_out);
    const Number* x = static_cast<const Number*>(p.x);
    const long long imaginary = static_cast<long long>(p.c_in) * p.f * p.t;
    const int last_in = first_in + p.chunk < p.c_in ? first_in + p.chunk : p.c_in;
    for (int kf = 0; kf < p.kernel_f; ++kf) {
      const int f_in = tensor_input(p.transposed, f, kf, p.stride_f, p.pad_f, p.f);
      if (f_in < 0) continue;
      for (int kt = 0; kt < p.kernel_t; ++kt) {
        const int t_in = tensor_input(p.transposed, t, kt, p.stride_t, p.pad_t, p.t);
        if (t_in < 0) continue;
        const Number* from = x + tensor_element(n, first_in, f_in, t_in, p.c_in, p.f, p.t);
        const Complex* w = shared + (kf * p.kernel_t + kt) * CT;
        for (int in = first_in; in < last_in; ++in) {
          const Complex v{to_float(from[0]), to_float(from[imaginary])};
          for (int i = 0; i < CT; ++i) multiply_add(sums[i], w[i], v);
          from += static_cast<long long>(p.f) * p.t;
          w += taps(p) * CT;
        }
      }
    }
  }

  EK_BOTH static void finish(const Tensor& p, int tile, int position, const Complex (&sums)[CT]) {
    if (position >= positions(p)) return;
    const int t = position % p.t_out, f = position / p.t_out % p.f_out, n = position / (p.t_out * p.f_out);
    const long long imaginary = static_cast<long long>(p.c_out) * p.f_out * p.t_out;
    for (int i = 0; i < CT; ++i) {
      const int c = tile * CT + i;
      if (c >= p.c_out) return;
      Number* y = static_cast<Number*>(p.y) + tensor_element(n, c, f, t, p.c_out, p.f_out, p.t_out);
      const float gain_re = p.gain ? p.gain[c] : 1.0f, gain_im = p.gain ? p.gain[p.c_out + c] : 1.0f;
      const float bias_re = p.bias ? p.bias[c] : 0.0f, bias_im = p.bias ? p.bias[p.c_out + c] : 0.0f;
      store(y, leaky(gain_re * sums[i].re + bias_re, p.slope));
      store(y + imaginary, leaky(gain_im * sums[i].im + bias_im, p.slope));
    }
  }
};

}  // namespace cuda
}  // namespace ek
#endif
