// indexing.h against definitions written another way: transposed convolutions by scattering, rings by remembering frames, cuts by
// counting who does what. And the convolution on whole tensors, emulated thread for thread, against plain loops in double.
#include <cstdio>
#include <map>
#include <set>
#include <tuple>

#include "emulate.h"
#include "reference.h"

using namespace ek::cuda;

namespace {

int failures = 0;

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++failures;                                                        \
      std::printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
    }                                                                    \
  } while (0)

using Reads = std::set<std::tuple<int, int, int, int>>;  // frame, frequency, frequency tap, time tap

// What an output frequency of the layer reads, by the definition of Conv2d, and of ConvTranspose2d as a scatter. Frame 0 is the newest.
Reads defined(Kind kind, int bins, int row) {
  Reads reads;
  for (int f = -kPad; f < bins + kPad; ++f)
    for (int kf = 0; kf < 5; ++kf)
      for (int kt = 0; kt < 2; ++kt) {
        const bool hit = kind == kEncoder ? f == 2 * row - 2 + kf : row == 2 * f - 2 + kf;
        if (hit) reads.insert({kind == kEncoder ? 1 - kt : kt, f, kf, kt});  // scatter: frame t reaches output frame t + kt
      }
  return reads;
}

void windows_are_the_convolution() {
  for (const Kind kind : {kEncoder, kDecoder})
    for (int bins = kind == kEncoder ? 2 : 1; bins <= 64; bins *= 2) {
      const int columns = kind == kEncoder ? bins / 2 : bins;
      std::set<int> written;
      for (int number = 0; number < phases_of(kind); ++number) {
        const Phase phase = phase_of(kind, number);
        for (int m = 0; m < columns; ++m) {
          Reads reads;
          for (int age = 0; age < frames_of(kind); ++age)
            for (int tap = 0; tap < phase.taps; ++tap) {
              const int f = input_row(phase, m, tap);
              CHECK(f >= -kPad && f < bins + kPad, "kind %d bins %d column %d reads %d, beyond the padding", kind, bins, m, f);
              reads.insert({age, f, kernel_tap(phase, tap), kernel_time(kind, age)});
            }
          const int row = output_row(phase, m);
          CHECK(written.insert(row).second, "kind %d writes %d twice", kind, row);
          CHECK(reads == defined(kind, bins, row), "kind %d bins %d output %d", kind, bins, row);
        }
      }
      const int rows = kind == kEncoder ? bins / 2 : bins * 2;
      CHECK(static_cast<int>(written.size()) == rows && *written.begin() == 0 && *written.rbegin() == rows - 1, "kind %d bins %d", kind, bins);
    }
}

// A ring of real memory: every frame is written with its own number, then windows are read back.
void rings_remember() {
  const int streams = 3, bins = 8, channels = 5;
  for (int delay = 0; delay <= 7; ++delay)
    for (unsigned first : {0u, 5u, 0xfffffff0u}) {
      int slots = 1;
      while (slots < delay + 2) slots *= 2;
      Ring ring{nullptr, ring_pairs(slots, bins, channels) + 7, slots, bins, channels};
      std::vector<long long> memory(static_cast<size_t>(ring.stream_stride) * streams, -1);  // -1: zero
      const auto number = [&](long long t, int s, int f, int c) { return ((t * streams + s) * bins + f) * channels + c; };
      const Source source{ring, delay};
      for (long long t = 0; t < 40; ++t) {
        const unsigned frame = first + static_cast<unsigned>(t);
        for (int s = 0; s < streams; ++s)
          for (int f = 0; f < bins; ++f)
            for (int c = 0; c < channels; ++c) memory[pair_of(ring, s, slot_of(ring, frame, 0), f) + c] = number(t, s, f, c);
        for (const Kind kind : {kEncoder, kDecoder})
          for (int p = 0; p < phases_of(kind); ++p)
            for (int age = 0; age < 2; ++age)
              for (int past : {kLive, 1, delay, delay + 1})
                for (int s = 0; s < streams; ++s)
                  for (int m = 0; m < (kind == kEncoder ? bins / 2 : bins); ++m) {
                    const Phase phase = phase_of(kind, p);
                    const int start = window_start(source, phase, frame, age, Column{s, m}, past, delay);
                    for (int i = 0; i < window_pairs(phase, ring); ++i) {
                      const int tap = i / channels, c = i % channels, f = input_row(phase, m, tap);
                      const long long read = t - delay - age;
                      const bool zero = f < 0 || f >= bins || read < 0 || (age == 0 && past > delay);
                      const long long want = zero ? -1 : number(read, s, f, c);
                      CHECK(memory[start + i] == want, "delay %d age %d past %d stream %d column %d", delay, age, past, s, m);
                    }
                  }
      }
    }
}

// Every sum has every term once, every output one owner, whatever the cut.
void cuts_cover_everything_once() {
  for (int lanes = 0; lanes <= 5; ++lanes)
    for (int groups = 0; lanes + groups <= 8; ++groups) {
      const Cut cut{lanes, 8 - lanes - groups, groups};
      for (int values : {1, 4, 8, 16}) {
        const Gather g{cut, values};
        std::set<int> places;
        std::map<std::pair<int, int>, std::set<int>> splits;
        for (int thread = 0; thread < kThreads; ++thread) {
          const Place place = place_of(cut, thread);
          splits[{place.lane, place.group}].insert(place.split);
          // Where the thread leaves value v is where the gather looks for it.
          for (int v = 0; v < values; ++v) {
            const int output = (v << g.outputs_log2()) + (place.group << cut.lanes_log2) + place.lane;
            CHECK(g.at(output, place.split) == v * kPitch + thread, "thread %d value %d", thread, v);
            places.insert(g.at(output, place.split));
          }
        }
        CHECK(static_cast<int>(places.size()) == values * kThreads, "%zu", places.size());
        for (const auto& s : splits) CHECK(static_cast<int>(s.second.size()) == 1 << cut.splits_log2, "%zu", s.second.size());
        // The gather adds whole numbers exactly.
        std::vector<float> shared(static_cast<size_t>(values) * kPitch, 0.0f);
        std::vector<float> want(g.outputs(), 0.0f);
        for (int o = 0; o < g.outputs(); ++o)
          for (int s = 0; s < 1 << cut.splits_log2; ++s) {
            shared[g.at(o, s)] = static_cast<float>(o % 97 + 3 * s + 1);
            want[o] += shared[g.at(o, s)];
          }
        for (int thread = kThreads - 1; thread >= 0; --thread) gather_parts(g, thread, shared.data());  // in any order
        for (int o = 0; o < g.outputs(); ++o) CHECK(gathered(g, o, shared.data()) == want[o], "output %d", o);
      }
    }
  for (const Grid grid : {Grid{1, 1}, Grid{3, 5}, Grid{8, 1}, Grid{1, 9}})
    for (int phases : {1, 2}) {
      std::set<std::tuple<int, int, int>> seen;
      for (int b = 0; b < grid.channel_tiles * grid.column_tiles * phases; ++b) {
        const Block at = block_of(grid, b);
        CHECK(at.phase < phases && at.channel_tile < grid.channel_tiles && at.column_tile < grid.column_tiles, "block %d", b);
        seen.insert({at.phase, at.channel_tile, at.column_tile});
      }
      CHECK(static_cast<int>(seen.size()) == grid.channel_tiles * grid.column_tiles * phases, "%zu", seen.size());
    }
}

void half_numbers_round_to_nearest_even() {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {  // every fp16 number survives
    const Half h{static_cast<unsigned short>(bits)};
    if ((bits & 0x7fff) >= 0x7c00) continue;  // infinities saturate, NaN has many forms
    CHECK(to_half(to_float(h)).bits == bits, "%04x", bits);
  }
  const auto half = [](float f) { return to_half(f).bits; };
  CHECK(half(1.0f + 0x1p-11f) == 0x3c00 && half(1.0f + 3 * 0x1p-11f) == 0x3c02, "ties");
  CHECK(half(1.0f + 0x1.002p-11f) == 0x3c01, "above a tie");
  CHECK(half(0x1p-25f) == 0 && half(0x1.002p-25f) == 1 && half(-0x3p-25f) == 0x8002, "subnormal ties");
  CHECK(half(65519.0f) == 0x7bff && half(1e30f) == 0x7bff && half(-1e30f) == 0xfbff, "saturation");
  CHECK((half(std::numeric_limits<float>::quiet_NaN()) & 0x7fff) > 0x7c00, "NaN");
}

// ---- whole tensors ----

struct TensorCase {
  Tensor p;
  int end_f, end_t;  // padding at the end
};

void tensor_equals_definition(TensorCase test, bool half, unsigned seed) {
  Tensor& p = test.p;
  const auto size = [&](int in, int k, int stride, int begin, int end) {
    return p.transposed ? (in - 1) * stride + k - begin - end : (in + begin + end - k) / stride + 1;
  };
  p.f_out = size(p.f, p.kernel_f, p.stride_f, p.pad_f, test.end_f);
  p.t_out = size(p.t, p.kernel_t, p.stride_t, p.pad_t, test.end_t);
  const int taps = p.kernel_f * p.kernel_t;
  reference::Random random(seed);
  const auto numbers = [&](size_t n, double scale) {
    std::vector<float> v = random.normals(n, scale);
    if (half)
      for (float& f : v) f = to_float(to_half(f));
    return v;
  };
  const std::vector<float> x = numbers(static_cast<size_t>(p.n) * 2 * p.c_in * p.f * p.t, 1);
  const std::vector<float> w = numbers(static_cast<size_t>(2) * p.c_in * p.c_out * taps, 1 / std::sqrt(2.0 * taps * p.c_in));
  const std::vector<float> gain = random.normals(2 * p.c_out, 0.2, 1), bias = random.normals(2 * p.c_out, 0.2);
  p.slope = 0.3f;
  p.gain = gain.data();
  p.bias = bias.data();

  // The definition: a convolution gathers, a transposed one scatters.
  std::vector<reference::Number> want(static_cast<size_t>(p.n) * p.c_out * p.f_out * p.t_out);
  const auto out_at = [&](int n, int o, int f, int t) { return ((static_cast<size_t>(n) * p.c_out + o) * p.f_out + f) * p.t_out + t; };
  for (int n = 0; n < p.n; ++n)
    for (int o = 0; o < p.c_out; ++o)
      for (int c = 0; c < p.c_in; ++c)
        for (int kf = 0; kf < p.kernel_f; ++kf)
          for (int kt = 0; kt < p.kernel_t; ++kt) {
            const size_t row = p.transposed ? static_cast<size_t>(c) * p.c_out + o : static_cast<size_t>(o) * p.c_in + c;
            const size_t at = (row * p.kernel_f + kf) * p.kernel_t + kt;
            const reference::Number weight(w[at], w[w.size() / 2 + at]);
            for (int f = 0; f < p.f; ++f)
              for (int t = 0; t < p.t; ++t) {
                const size_t re = ((static_cast<size_t>(n) * 2 * p.c_in + c) * p.f + f) * p.t + t, im = re + static_cast<size_t>(p.c_in) * p.f * p.t;
                int fo, to;
                if (p.transposed) {
                  fo = f * p.stride_f + kf - p.pad_f;
                  to = t * p.stride_t + kt - p.pad_t;
                } else {
                  if ((f + p.pad_f - kf) % p.stride_f || (t + p.pad_t - kt) % p.stride_t) continue;
                  fo = (f + p.pad_f - kf) / p.stride_f;
                  to = (t + p.pad_t - kt) / p.stride_t;
                }
                if (fo < 0 || fo >= p.f_out || to < 0 || to >= p.t_out) continue;
                want[out_at(n, o, fo, to)] += weight * reference::Number(x[re], x[im]);
              }
          }

  std::vector<Half> x16, w16;
  for (float f : x) x16.push_back(to_half(f));
  for (float f : w) w16.push_back(to_half(f));
  std::vector<float> y(want.size() * 2, std::numeric_limits<float>::quiet_NaN());
  std::vector<Half> y16(y.size(), Half{0x7e00});
  p.x = half ? static_cast<const void*>(x16.data()) : x.data();
  p.w = half ? static_cast<const void*>(w16.data()) : w.data();
  p.y = half ? static_cast<void*>(y16.data()) : y.data();
  int ct, blocks_x, blocks_y;
  CHECK(plan_tensor(&p, &ct, &blocks_x, &blocks_y), "plan");
  emulate(p, half, ct, blocks_x, blocks_y);
  double worst = 0;
  for (int n = 0; n < p.n; ++n)
    for (int o = 0; o < p.c_out; ++o)
      for (int f = 0; f < p.f_out; ++f)
        for (int t = 0; t < p.t_out; ++t)
          for (int part = 0; part < 2; ++part) {
            const reference::Number sum = want[out_at(n, o, f, t)];
            double v = gain[part * p.c_out + o] * (part ? sum.imag() : sum.real()) + bias[part * p.c_out + o];
            v = v > 0 ? v : 0.3f * v;
            const size_t at = ((static_cast<size_t>(n) * 2 * p.c_out + part * p.c_out + o) * p.f_out + f) * p.t_out + t;
            const double off = std::abs(v - (half ? to_float(y16[at]) : y[at]));
            if (!(off <= worst)) worst = off;
          }
  // Outputs are near 1: fp32 sums of some thousand terms; fp16 output rounds by 2^-11 of up to 8.
  CHECK(worst <= (half ? 4e-3 : 2e-5), "tensor %d -> %d channels, transposed %d, half %d: off by %g", p.c_in, p.c_out, p.transposed, half, worst);
}

void tensors() {
  unsigned seed = 1;
  for (const bool half : {false, true})
    for (const int transposed : {0, 1})
      for (const auto& c : {std::pair<int, int>{1, 16}, {3, 5}, {16, 1}, {64, 9}, {129, 8}}) {
        Tensor p{};
        p.transposed = transposed;
        p.n = 2;
        p.c_in = c.first;
        p.c_out = c.second;
        p.f = 16;
        p.t = 9;
        p.kernel_f = 5;
        p.kernel_t = 2;
        p.stride_f = 2;
        p.stride_t = 1;
        p.pad_f = 2;
        p.pad_t = transposed ? 0 : 1;
        tensor_equals_definition({p, transposed ? 1 : 2, transposed ? 1 : 0}, half, ++seed);  // DCCRN's own
        p.kernel_f = 3;
        p.kernel_t = 3;
        p.stride_f = 1;
        p.stride_t = 3;
        p.pad_f = 0;
        p.pad_t = 2;
        tensor_equals_definition({p, 1, 0}, half, ++seed);
        p.kernel_f = p.kernel_t = p.stride_f = p.stride_t = 1;
        p.pad_f = p.pad_t = 0;
        tensor_equals_definition({p, 0, 0}, half, ++seed);
      }
  Tensor p{};
  p.n = p.c_in = p.c_out = p.f_out = p.t_out = 1;
  p.c_out = 8;
  p.kernel_f = 64;
  p.kernel_t = 9;  // 576 taps of 8 channels do not fit 32 KiB
  int ct, x, y;
  CHECK(!plan_tensor(&p, &ct, &x, &y), "a kernel beyond shared memory is refused");
}

}  // namespace

int main() {
  windows_are_the_convolution();
  rings_remember();
  cuts_cover_everything_once();
  half_numbers_round_to_nearest_even();
  tensors();
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures ? 1 : 0;
}
