// Times every row's kernels at DCCRN's shapes with random numbers, layer by layer and as a frame, beside the roofline probed in the same run.
//
//     kernels [--rounds N] [--half] [--layers] [rows ...]     rows: avx512_i8, avx512_f32, avx512_f32:gauss, ...; all that run here if none
//
// Rows take turns (8 frames to warm up, 40 timed), so that a neighbour on the machine hits all alike; medians and tenth percentiles.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../core/kernels.h"
#include "roofline.h"

using namespace ek;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

uint32_t g_state = 1;
float uniform() {
  g_state = g_state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(g_state)) * (1.0f / 2147483648.0f);
}
std::vector<float> random_floats(size_t n, float scale = 1.0f) {
  std::vector<float> x(n);
  for (float& v : x) v = scale * uniform();
  return x;
}
std::vector<int8_t> random_int8(size_t n) {
  std::vector<int8_t> x(n);
  for (int8_t& v : x) v = static_cast<int8_t>(127 * uniform());
  return x;
}

// Zeroed memory in huge pages, one after the other, as an engine keeps its weights.
class Arena {
 public:
  explicit Arena(size_t bytes) : size_(bytes) {
    base_ = static_cast<char*>(std::aligned_alloc(size_t{2} << 20, size_));
    madvise(base_, size_, MADV_HUGEPAGE);
    std::memset(base_, 0, size_);
  }
  ~Arena() { std::free(base_); }
  Arena(const Arena&) = delete;
  void* take(size_t bytes) {
    void* piece = base_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    if (used_ > size_) std::abort();
    return piece;
  }
  const char* base() const { return base_; }

 private:
  char* base_;
  size_t size_, used_ = 0;
};

// The frames of one tensor, newest at now(), for as many steps back as a skip needs.
struct Ring {
  Ring(Arena& arena, int depth_, int bins, int channels_, int planes, int element_bytes, int zero)
      : depth(depth_), channels(channels_), step(planes * channels_), bytes(element_bytes), frame_bytes(static_cast<size_t>(bins + 2 * kPad) * step * bytes) {
    base = static_cast<char*>(arena.take(frame_bytes * depth));
    std::memset(base, zero, frame_bytes * depth);
  }
  char* row(long time, int f) const { return base + static_cast<size_t>((time % depth + depth) % depth) * frame_bytes + static_cast<size_t>(f + kPad) * step * bytes; }
  int depth, channels, step, bytes;
  size_t frame_bytes;
  char* base;
};

constexpr int kLayers = 6;

// What a ConvSpec points at.
struct Weights {
  std::vector<Source> sources;
  std::vector<float> w[2], gain[2], bias[2];
  std::vector<int8_t> q[2];
  ConvSpec spec{};
};

struct Phase {
  Weights weights;
  Conv conv;
  size_t bytes = 0;  // of packed weights
  std::vector<const Ring*> ring;
  std::vector<int> back, row;  // how many steps ago, which frequency column 0 reads
  std::vector<Tap> taps;
};

void fill(Phase& phase, const Row* row, Arena& arena, int c_out, int columns, int stride, Algorithm algorithm, bool floats) {
  Weights& w = phase.weights;
  size_t inputs = 0;
  for (const Ring* ring : phase.ring) {
    const int c_in = ring->channels;
    w.sources.push_back(Source{c_in, stride * ring->step});
    inputs += c_in;
  }
  for (int part = 0; part < 2; part++) {
    w.w[part] = random_floats(inputs * c_out, 0.1f);
    w.q[part] = random_int8(inputs * c_out);
    w.gain[part] = random_floats(c_out, row->format == EK_I8 && !floats ? 1e-5f : 1.0f);
    w.bias[part] = random_floats(c_out, 0.1f);
  }
  w.spec = ConvSpec{c_out, columns, static_cast<int>(phase.ring.size()), w.sources.data(), {w.w[0].data(), w.w[1].data()}, {nullptr, nullptr},
                    {w.gain[0].data(), w.gain[1].data()}, {w.bias[0].data(), w.bias[1].data()}, 0.25f, 127.0f, algorithm};
  if (row->format == EK_I8 && !floats)
    for (int part = 0; part < 2; part++) w.spec.q[part] = w.q[part].data();
  phase.taps.resize(phase.ring.size());
  if (floats) return;
  phase.bytes = row->conv_bytes(&w.spec);
  row->pack_conv(&w.spec, arena.take(phase.bytes), &phase.conv);
}

const Tap* taps_at(Phase& phase, long time) {
  for (size_t t = 0; t < phase.ring.size(); t++) phase.taps[t].x = phase.ring[t]->row(time - phase.back[t], phase.row[t]);
  return phase.taps.data();
}

// One DCCRN in one row's kernels.
class Net {
 public:
  Net(const Row* row, Algorithm algorithm, int width, std::string name_) : name(std::move(name_)), row_(row), arena_(size_t{96} << 20) {
    const int c[] = {1, width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width};
    hidden_ = 8 * width;
    const int planes = algorithm == EK_GAUSS ? 3 : row->planes;
    const auto ring = [&](int depth, int bins, int channels) { return std::make_unique<Ring>(arena_, depth, bins, rounded(channels), planes, row->element_bytes, row->zero); };
    const auto floats = [&](int depth, int bins, int channels) { return std::make_unique<Ring>(arena_, depth, bins, channels, 2, 4, 0); };

    input_ = floats(2, 256, 1);
    for (float* x = reinterpret_cast<float*>(input_->base); x < reinterpret_cast<float*>(input_->base + 2 * input_->frame_bytes); x++) *x = uniform();
    for (int i = 0; i < kLayers; i++) encoded_[i] = ring(std::max(2, kLayers + 1 - i), 128 >> i, c[i + 1]);
    encoded_floats_ = floats(kLayers + 1, 128, rounded(c[1]));
    for (int j = 0; j < kLayers - 1; j++) decoded_[j] = ring(2, 4 << j, c[kLayers - j]);
    decoded_floats_ = floats(2, 128, rounded(c[1]));

    for (int i = 0; i < kLayers; i++) {
      Phase& phase = encoder_[i];
      for (int time = 0; time < 2; time++)
        for (int k = 0; k < 5; k++) {
          phase.ring.push_back(i ? encoded_[i - 1].get() : input_.get());
          phase.back.push_back(1 - time);
          phase.row.push_back(k - 2);
        }
      fill(phase, row, arena_, c[i + 1], 128 >> i, 2, algorithm, i == 0);
      add_layer(4.0 * c[i + 1] * c[i] * 10 * (128 >> i), phase.bytes);
    }
    for (int layer = 0; layer < 2; layer++) {
      const int inputs = layer ? hidden_ : 4 * c[kLayers];
      const size_t bytes = pack_cell(layer, 0, inputs) + pack_cell(layer, 1, inputs);
      add_layer(4.0 * 4 * hidden_ * (inputs + hidden_), bytes);
    }
    add_layer(2.0 * 4 * c[kLayers] * hidden_, pack_dense(0, 4 * rounded(c[kLayers])) + pack_dense(1, 4 * rounded(c[kLayers])));
    for (int j = 0; j < kLayers; j++) {
      for (int odd = 0; odd < 2; odd++) {
        Phase& phase = decoder_[j][odd];
        const bool is_last = j == kLayers - 1;
        for (int time = 0; time < 2; time++)
          for (int skip = 0; skip < 2; skip++)
            for (int k = 0; k < (odd ? 2 : 3); k++) {
              phase.ring.push_back(is_last ? (skip ? encoded_floats_ : decoded_floats_).get() : (skip ? encoded_[5 - j] : decoded_[j]).get());
              phase.back.push_back((skip ? j + 1 : 1) - time);
              phase.row.push_back(k + (odd ? 0 : -1));
            }
        fill(phase, row, arena_, c[kLayers - 1 - j], 4 << j, 1, algorithm, is_last);
      }
      add_layer(4.0 * c[kLayers - 1 - j] * 2 * c[kLayers - j] * 10 * (4 << j), decoder_[j][0].bytes + decoder_[j][1].bytes);
    }
    seconds.resize(macs_.size() + 1);
  }

  // One frame; the time of every layer and of the whole goes to `seconds` if wanted.
  void step(bool timed, bool layers) {
    const double begin = now();
    double last = begin;
    size_t at = 0;
    const auto mark = [&] {
      if (timed && layers) {
        const double t = now();
        seconds[at].push_back(t - last);
        last = t;
      }
      at++;
    };
    const auto out_of = [&](const Ring* ring, const Ring* floats, int first, int every) {
      return Out{ring ? ring->row(time_, first) : nullptr, floats ? reinterpret_cast<float*>(floats->row(time_, first)) : nullptr,
                 ring ? every * ring->step : 0, floats ? every * floats->step : 0, ring ? ring->channels : floats->channels};
    };
    {
      const Out out = out_of(encoded_[0].get(), encoded_floats_.get(), 0, 1);
      row_->first(&encoder_[0].weights.spec, taps_at(encoder_[0], time_), &out, 0, 128);
      mark();
    }
    for (int i = 1; i < kLayers; i++) {
      const Out out = out_of(encoded_[i].get(), nullptr, 0, 1);
      row_->conv(&encoder_[i].conv, taps_at(encoder_[i], time_), &out, 0, encoder_[i].conv.items);
      mark();
    }
    for (int layer = 0; layer < 2; layer++) {
      recurrent(layer);
      mark();
    }
    project();
    mark();
    for (int j = 0; j < kLayers; j++) {
      for (int odd = 0; odd < 2; odd++) {
        Phase& phase = decoder_[j][odd];
        if (j == kLayers - 1) {
          row_->last(&phase.weights.spec, taps_at(phase, time_), mask_[0] + odd, mask_[1] + odd, 0, 128);
          continue;
        }
        const bool to_floats = j == kLayers - 2;
        const Out out = out_of(to_floats ? nullptr : decoded_[j + 1].get(), to_floats ? decoded_floats_.get() : nullptr, odd, 2);
        row_->conv(&phase.conv, taps_at(phase, time_), &out, 0, phase.conv.items);
      }
      mark();
    }
    time_++;
    if (timed) seconds.back().push_back(now() - begin);
  }

  std::string name;
  std::vector<std::vector<double>> seconds;  // per layer, then of the frame
  const std::vector<double>& macs() const { return macs_; }
  const Row* row() const { return row_; }
  const std::vector<size_t>& weight_bytes() const { return bytes_; }
  // The fastest that weights can arrive at which do not stay in a core's own cache between frames.
  double read_rate() const { return ek_read_rate(arena_.base(), size_t{2} << 20); }
 private:
  void add_layer(double macs, size_t bytes) {
    macs_.push_back(macs);
    bytes_.push_back(bytes);
  }

  size_t pack_cell(int layer, int net, int inputs) {
    const size_t rows = 4 * static_cast<size_t>(hidden_);
    const auto w_x = random_floats(rows * inputs, 0.05f), w_h = random_floats(rows * hidden_, 0.05f), scale = random_floats(rows, 1e-5f), bias = random_floats(rows);
    const auto q_x = random_int8(rows * inputs), q_h = random_int8(rows * hidden_);
    const std::vector<int> segments(layer ? 1 : 4, layer ? inputs : inputs / 4);
    const bool int8 = row_->format == EK_I8;
    const CellSpec spec{EK_LSTM, hidden_, static_cast<int>(segments.size()), segments.data(), w_x.data(), w_h.data(), int8 ? q_x.data() : nullptr,
                        int8 ? q_h.data() : nullptr, scale.data(), scale.data(), bias.data(), bias.data()};
    const size_t bytes = row_->cell_bytes(&spec);
    row_->pack_cell(&spec, arena_.take(bytes), &cell_[layer][net]);
    const size_t vector = static_cast<size_t>(rounded(hidden_)) * row_->element_bytes;
    for (int k = 0; k < 2; k++) {
      for (int parity = 0; parity < 2; parity++) std::memset(h_[layer][net][k][parity] = static_cast<char*>(arena_.take(vector)), row_->zero, vector);
      h_floats_[layer][net][k] = static_cast<float*>(arena_.take(rounded(hidden_) * sizeof(float)));
      c_[layer][net][k] = static_cast<float*>(arena_.take(rounded(hidden_) * sizeof(float)));
      if (!net) std::memset(between_[layer][k] = static_cast<char*>(arena_.take(vector)), row_->zero, vector);
    }
    return bytes;
  }

  size_t pack_dense(int part, int rows) {
    const auto w = random_floats(static_cast<size_t>(rows) * hidden_, 0.05f), scale = random_floats(rows, 1e-5f), bias = random_floats(rows);
    const auto q = random_int8(static_cast<size_t>(rows) * hidden_);
    const DenseSpec spec{rows, hidden_, w.data(), row_->format == EK_I8 ? q.data() : nullptr, scale.data(), bias.data()};
    const size_t bytes = row_->dense_bytes(&spec);
    row_->pack_dense(&spec, arena_.take(bytes), &dense_[part]);
    projected_[part] = static_cast<float*>(arena_.take(rows * sizeof(float)));
    return bytes;
  }

  // Both nets on both inputs, then re = R(re) - I(im), im = R(im) + I(re).
  void recurrent(int layer) {
    const int old = static_cast<int>((time_ + 1) & 1), fresh = static_cast<int>(time_ & 1), channels = encoded_[5]->channels;
    const void* x[2][4];
    for (int k = 0; k < 2; k++)
      for (int f = 0; f < 4; f++) x[k][f] = layer ? between_[0][k] : encoded_[5]->row(time_, f) + k * channels * row_->element_bytes;
    for (int net = 0; net < 2; net++) {
      CellRun run{};
      for (int k = 0; k < 2; k++) {
        run.x[k] = x[k];
        run.h_old[k] = h_[layer][net][k][old];
        run.h_new[k] = h_[layer][net][k][fresh];
        run.h_f32[k] = h_floats_[layer][net][k];
        run.c[k] = c_[layer][net][k];
      }
      row_->cell(&cell_[layer][net], &run, 0, cell_[layer][net].items);
    }
    float sum[2][1024];
    for (int u = 0; u < rounded(hidden_); u++) {
      sum[0][u] = h_floats_[layer][0][0][u] - h_floats_[layer][1][1][u];
      sum[1][u] = h_floats_[layer][0][1][u] + h_floats_[layer][1][0][u];
    }
    for (int k = 0; k < 2; k++) row_->store(sum[k], 100.0f, between_[layer][k], rounded(hidden_));
  }

  void project() {
    for (int part = 0; part < 2; part++) row_->dense(&dense_[part], between_[1][part], projected_[part], 0, dense_[part].items);
    const Ring* ring = decoded_[0].get();
    for (int f = 0; f < 4; f++)
      row_->store_row(projected_[0] + f * ring->channels, projected_[1] + f * ring->channels, 100.0f, ring->row(time_, f), ring->channels, ring->step / ring->channels);
  }

  const Row* row_;
  Arena arena_;
  int hidden_ = 0;
  long time_ = 0;
  std::unique_ptr<Ring> input_, encoded_[kLayers], encoded_floats_, decoded_[kLayers - 1], decoded_floats_;
  Phase encoder_[kLayers], decoder_[kLayers][2];
  Cell cell_[2][2];
  Dense dense_[2];
  char* h_[2][2][2][2];   // layer, net, input, parity of time
  float* h_floats_[2][2][2];
  float* c_[2][2][2];
  char* between_[2][2];
  float* projected_[2];
  float mask_[2][257];
  std::vector<double> macs_;
  std::vector<size_t> bytes_;
};

const char* const kNames[] = {"e0", "e1", "e2", "e3", "e4", "e5", "rnn0", "rnn1", "proj", "d0", "d1", "d2", "d3", "d4", "d5", "frame"};

struct Candidate {
  const Row* row;
  bool runs_here;
  double (*peak)();
};

void usage() { std::printf("kernels [--rounds N] [--half] [--layers] [rows ...]\n"); }

}  // namespace

int main(int argc, char** argv) {
  int rounds = 20, width = 16;
  bool layers = false;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word == "--rounds" && i + 1 < argc) rounds = std::atoi(argv[++i]);
    else if (word == "--half") width = 8;
    else if (word == "--layers") layers = true;
    else if (word[0] == '-') return usage(), 2;
    else wanted.push_back(word);
  }
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx512 = avx2 && __builtin_cpu_supports("avx512bw");
  const Candidate candidates[] = {{&avx2_f32, avx2, ek_peak_f32_avx2},
                                  {&avx2_i8, avx2, ek_peak_i8_avx2},
                                  {&avx2_vnni_i8, avx2 && __builtin_cpu_supports("avxvnni"), ek_peak_i8_avx2_vnni},
                                  {&avx512_f32, avx512, ek_peak_f32_avx512},
                                  {&avx512_bf16, avx512 && __builtin_cpu_supports("avx512bf16"), ek_peak_bf16_avx512},
                                  {&avx512_i8, avx512 && __builtin_cpu_supports("avx512vnni"), ek_peak_i8_avx512}};
  std::vector<std::unique_ptr<Net>> nets;
  std::vector<double (*)()> peaks;
  for (const Candidate& c : candidates)
    for (Algorithm algorithm : {EK_FOUR_MULT, EK_GAUSS}) {
      if (!c.runs_here || (algorithm == EK_GAUSS && c.row->format != EK_F32)) continue;
      const std::string name = std::string(c.row->name) + (algorithm == EK_GAUSS ? ":gauss" : "");
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
      nets.push_back(std::make_unique<Net>(c.row, algorithm, width, name));
      peaks.push_back(c.peak);
    }
  if (nets.empty()) return std::printf("no such row runs here\n"), 2;

  std::vector<std::vector<double>> peak(nets.size()), read(nets.size());
  for (int round = 0; round < rounds; round++)
    for (size_t i = 0; i < nets.size(); i++) {
      peak[i].push_back(peaks[i]());
      read[i].push_back(nets[i]->read_rate());
      for (int f = 0; f < 8; f++) nets[i]->step(false, layers);
      for (int f = 0; f < 40; f++) nets[i]->step(true, layers);
    }

  // Two bounds: multiplications at the peak rate ("of peak"), and the roofline, where a layer takes at least as long as its weights take to
  // arrive, should that be longer ("of roofline"). Recurrent layers use a weight twice a frame, so it is, in every format.
  for (size_t i = 0; i < nets.size(); i++) {
    Net& net = *nets[i];
    const double roof = percentile(peak[i], 0.9), rate = percentile(read[i], 0.9);
    double frame_macs = 0, frame_floor = 0, conv_macs = 0, conv_floor = 0, conv_seconds = 0, all_bytes = 0;
    std::string table;
    char line[200];
    for (size_t l = 0; l < net.macs().size(); l++) {
      const double macs = net.macs()[l], bytes = static_cast<double>(net.weight_bytes()[l]), floor = std::max(macs / roof, bytes / rate);
      frame_macs += macs, frame_floor += floor, all_bytes += bytes;
      if (!layers) continue;
      const double median = percentile(net.seconds[l], 0.5), low = percentile(net.seconds[l], 0.1);
      std::snprintf(line, sizeof line, "  %-5s %6.2f MMAC %7.1f KB %7.2f us  p10 %7.2f us  %6.1f GMAC/s  p10 %5.1f %% of peak, %5.1f %% of roofline\n", kNames[l],
                    macs / 1e6, bytes / 1e3, median * 1e6, low * 1e6, macs / low / 1e9, 100 * macs / low / roof, 100 * floor / low);
      table += line;
      if ((l > 0 && l < 6) || (l > 8 && l < 14)) conv_macs += macs, conv_floor += floor, conv_seconds += low;
    }
    std::printf("%s: peak %.1f GMAC/s, %.2f MB of weights at %.1f GB/s at most\n%s", net.name.c_str(), roof / 1e9, all_bytes / 1e6, rate / 1e9, table.c_str());
    if (layers)
      std::printf("  e1..e5 d0..d4, p10: %.1f us, %.1f %% of peak, %.1f %% of roofline\n", conv_seconds * 1e6, 100 * conv_macs / conv_seconds / roof,
                  100 * conv_floor / conv_seconds);
    const double median = percentile(net.seconds.back(), 0.5), low = percentile(net.seconds.back(), 0.1);
    std::printf("  frame %6.2f MMAC, median %.1f us, p10 %.1f us, min %.1f us: median %.1f %% of peak, %.1f %% of roofline; p10 %.1f %%, %.1f %%\n",
                frame_macs / 1e6, median * 1e6, low * 1e6, percentile(net.seconds.back(), 0.0) * 1e6, 100 * frame_macs / median / roof,
                100 * frame_floor / median, 100 * frame_macs / low / roof, 100 * frame_floor / low);
  }
}
