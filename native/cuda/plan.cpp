#include "cuda/plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cuda/numbers.h"
#include "cuda/threads.h"

namespace ek {
namespace cuda {
namespace {

constexpr size_t kAlign = 256;

size_t aligned(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

int slots_for(int frames) {
  int slots = 1;
  while (slots < frames) slots *= 2;
  return slots;
}

// ---- cutting work ----

struct Choice {
  Variant variant;
  Cut cut;
  Grid grid;
  double cycles = std::numeric_limits<double>::infinity();
};

struct Work {
  int outputs;       // channels or hidden units
  int columns;       // columns * streams, or streams
  int phases;
  double terms;      // of one sum, mean of the phases
  double pair_bytes; // of a weight that a thread loads per term and channel
  bool convert;      // fp16 has to be widened
};

int tiles(int n, int size) { return (n + size - 1) / size; }

// Cycles of one multiprocessor, roughly: whichever of issue slots, load slots, weight traffic and latency is longest, then the gather.
// Only the order of the figures matters. Constants are those of Volta to Hopper within a factor of two.
double estimate(const Work& work, int processors, int ct, int nt, int fma, int loads, int values, const Cut& cut) {
  const int lanes = 1 << cut.lanes_log2, splits = 1 << cut.splits_log2, groups = 1 << cut.groups_log2;
  const double blocks = static_cast<double>(tiles(work.outputs, lanes * ct)) * tiles(work.columns, groups * nt) * work.phases;
  const double per_processor = std::max(1.0, blocks / processors), rounds = static_cast<double>(tiles(static_cast<int>(blocks), processors));
  const double warps = kThreads / 32, steps = tiles(static_cast<int>(work.terms), splits);
  const double convert = work.convert ? 2.0 * (ct + nt) : 0.0;
  const double issue = rounds * warps * steps * (fma + loads + convert + 5) / 4;
  const double groups_of_warp = std::max(1.0, 32.0 / (lanes * splits));  // each reads columns, so cache lines, of its own
  const double weight_lines = std::max(1.0, 32 / groups_of_warp * ct * work.pair_bytes / 128);
  const double load_slots = rounds * warps * steps * (weight_lines + (loads - 1) * groups_of_warp);
  const double traffic = per_processor * work.terms * lanes * ct * work.pair_bytes / 48;
  const double resident = std::min(4.0, 96.0 / (values * 8 * kPitch / 1024.0));
  const double latency = std::max(1.0, rounds / resident) * (300 + steps * 300 / 4);
  const double gather = rounds * (80 + values * 10 + 20.0 * std::max(1, values / splits));
  return std::max({issue, load_slots, traffic, latency}) + gather;
}

template <class Visit>
void each_cut(Visit visit) {
  for (int lanes = 0; lanes <= 5; ++lanes)
    for (int groups = 0; lanes + groups <= Gather::kLog2Threads; ++groups) visit(Cut{lanes, Gather::kLog2Threads - lanes - groups, groups});
}

void consider(Choice* best, const Work& work, const PlanOptions& options, int ct, int nt, int fma, int loads, int values, const Cut& cut) {
  const double cycles = estimate(work, options.processors, ct, nt, fma, loads, values, cut);
  if (cycles >= best->cycles) return;
  best->cycles = cycles;
  best->variant.ct = ct;
  best->variant.nt = nt;
  best->cut = cut;
  best->grid = Grid{tiles(work.outputs, ct << cut.lanes_log2), tiles(work.columns, nt << cut.groups_log2)};
}

Choice cut_conv(const Work& work, const PlanOptions& options, bool parts) {
  static constexpr int kCuts[][2] = {{1, 1}, {1, 4}, {2, 4}, {2, 8}};
  Choice best;
  for (const auto& c : kCuts)
    each_cut([&](const Cut& cut) {
      consider(&best, work, options, c[0], c[1], (parts ? 2 : 4) * c[0] * c[1], 1 + c[1], c[0] * c[1], cut);
    });
  return best;
}

Choice cut_recurrent(const Work& work, const PlanOptions& options) {
  Choice best;
  for (int nt = 1; nt <= 2; ++nt)
    each_cut([&](const Cut& cut) { consider(&best, work, options, 1, nt, 16 * nt, 2 + nt, 8 * nt, cut); });
  return best;
}

// ---- building ----

struct Placed {
  Ring ring;
  size_t at;     // in a stream's block
  bool half;
};

class Builder {
 public:
  Builder(const Model& model, const PlanOptions& options, Plan* plan) : model_(model), options_(options), plan_(plan) {}

  bool build(std::string* why) {
    if (!check(why)) return false;
    plan_->options = options_;
    plan_->bins = model_.bins;
    plan_->delay = model_.look_ahead ? model_.depth() : 0;
    place();
    for (Placed& placed : rings_) placed.ring.stream_stride = stride_of(placed.half ? sizeof(HalfComplex) : sizeof(Complex));
    const double pairs = static_cast<double>(plan_->stream_bytes) / sizeof(HalfComplex) * options_.streams;
    if (pairs * 2 > std::numeric_limits<int>::max())
      return say(why, "too many streams: their states would not fit 32-bit indices; make several engines");
    intake();
    for (int i = 0; i < model_.depth(); ++i) encoder(i);
    for (int l = 0; l < static_cast<int>(model_.recurrent.size()); ++l) recurrent(l);
    projection();
    for (int j = 0; j < model_.depth(); ++j) decoder(j);
    return true;
  }

 private:
  static bool say(std::string* why, const std::string& text) {
    *why = text;
    return false;
  }

  static bool is(const std::vector<float>& v, size_t n) { return v.size() == n; }

  bool check(std::string* why) const {
    const int n = model_.depth();
    if (options_.streams < 1 || options_.streams > 4096) return say(why, "streams must be 1 to 4096, got " + std::to_string(options_.streams));
    if (options_.processors < 1) return say(why, "a GPU has at least one multiprocessor");
    if (n < 1 || n > 8 || static_cast<int>(model_.decoder.size()) != n) return say(why, "the network needs 1 to 8 encoder layers and as many decoder layers");
    if (model_.bins < 1 || (model_.bins & (model_.bins - 1)) || model_.bins_of(n) < 1) return say(why, "bins must be a power of two of at least 2^depth");
    if (model_.recurrent.empty()) return say(why, "the network has no recurrent layer");
    int c = 1;
    for (const ConvWeights& layer : model_.encoder) {
      if (layer.c_in != c || !fits(layer)) return say(why, "an encoder layer's weights do not have its shape");
      c = layer.c_out;
    }
    size_t inputs = static_cast<size_t>(c) * model_.bins_of(n);
    const size_t gates = model_.gru ? 3 : 4;
    for (const RecurrentWeights& layer : model_.recurrent) {
      const size_t h = layer.hidden;
      for (const NetWeights& net : layer.nets)
        if (h < 1 || h > 1024 || !is(net.w_x, gates * h * inputs) || !is(net.w_h, gates * h * h) || !is(net.b_x, gates * h) || !is(net.b_h, gates * h))
          return say(why, "a recurrent layer's weights do not have its shape");
      inputs = h;
    }
    const size_t rows = static_cast<size_t>(model_.projection_channels) * model_.bins_of(n);
    for (const DenseWeights& net : model_.projection)
      if (model_.projection_channels < 1 || model_.projection_channels > 1024 || !is(net.w, rows * inputs) || !is(net.bias, rows))
        return say(why, "the projection's weights do not have its shape");
    c = model_.projection_channels;
    for (int j = 0; j < n; ++j) {
      const ConvWeights& layer = model_.decoder[j];
      if (layer.c_in != c + model_.encoder[n - 1 - j].c_out || !fits(layer)) return say(why, "a decoder layer's weights do not have its shape");
      c = layer.c_out;
    }
    if (c != 1) return say(why, "the last decoder layer must have one complex channel");
    return true;
  }

  static bool fits(const ConvWeights& layer) {
    return layer.c_in >= 1 && layer.c_out >= 1 && layer.c_in <= 2048 && layer.c_out <= 1024 &&
           is(layer.w, static_cast<size_t>(20) * layer.c_in * layer.c_out) && is(layer.gain, 2u * layer.c_out) && is(layer.bias, 2u * layer.c_out);
  }

  // ---- states ----

  size_t reserve(size_t bytes) {
    const size_t at = plan_->stream_bytes;
    plan_->stream_bytes += aligned(bytes);
    return at;
  }

  int ring(int slots, int bins, int channels, bool half) {
    const size_t pair = half ? sizeof(HalfComplex) : sizeof(Complex);
    const size_t at = reserve(static_cast<size_t>(ring_pairs(slots, bins, channels)) * pair);
    rings_.push_back(Placed{Ring{nullptr, 0, slots, bins, channels}, at, half});
    plan_->period = std::max(plan_->period, static_cast<unsigned>(slots));
    return static_cast<int>(rings_.size()) - 1;
  }

  int lag(int decoder) const { return model_.look_ahead ? decoder : 0; }

  void place() {
    const int n = model_.depth();
    plan_->period = 2;  // h states
    input_ = ring(2, model_.bins, 1, false);
    for (int i = 0; i < n; ++i)  // decoder layer n-1-i reads it `lag` frames later, and one frame before that
      skips_.push_back(ring(slots_for(lag(n - 1 - i) + 2), model_.bins_of(i + 1), model_.encoder[i].c_out, options_.half));
    for (const RecurrentWeights& layer : model_.recurrent) {
      features_.push_back(ring(1, 1, layer.hidden, options_.half));
      h_.push_back(reserve(sizeof(float) * 2 * layer.hidden * 4));
      c_.push_back(reserve(sizeof(float) * layer.hidden * 4));
    }
    frames_.push_back(ring(2, model_.bins_of(n), model_.projection_channels, options_.half));
    for (int j = 0; j + 1 < n; ++j) frames_.push_back(ring(2, model_.bins_of(n - 1 - j), model_.decoder[j].c_out, options_.half));
  }

  int stride_of(size_t element_bytes) const { return static_cast<int>(plan_->stream_bytes / element_bytes); }

  // ---- weights ----

  template <class T>
  size_t keep(const std::vector<T>& values) {
    const size_t at = plan_->weights.size(), bytes = values.size() * sizeof(T);
    plan_->weights.resize(aligned(at + bytes));
    std::memcpy(plan_->weights.data() + at, values.data(), bytes);
    return at;
  }

  size_t keep_numbers(const std::vector<float>& values, bool half) {
    if (!half) return keep(values);
    std::vector<Half> narrow(values.size());
    for (size_t i = 0; i < values.size(); ++i) narrow[i] = to_half(values[i]);
    return keep(narrow);
  }

  // [tile][source][age][tap][channel in][channel out of tile] complex, from w[part](out, in, frequency tap, time tap).
  template <class Weight>
  void pack(Node* node, const std::vector<int>& c_in, Weight weight) {
    const Conv& p = node->conv;
    const int tile_channels = node->variant.ct << p.cut.lanes_log2;
    for (int number = 0; number < phases_of(p.kind); ++number) {
      const Phase phase = phase_of(p.kind, number);
      const int terms = p.terms[number];
      std::vector<float> packed(static_cast<size_t>(p.grid.channel_tiles) * terms * tile_channels * 2);
      for (int tile = 0; tile < p.grid.channel_tiles; ++tile) {
        int term = 0, first_in = 0;
        for (int source = 0; source < p.n_sources; ++source) {
          for (int age = 0; age < frames_of(p.kind); ++age)
            for (int tap = 0; tap < phase.taps; ++tap)
              for (int c = 0; c < c_in[source]; ++c, ++term)
                for (int i = 0; i < tile_channels; ++i) {
                  const int out = tile * tile_channels + i;
                  if (out >= p.c_out) continue;
                  const size_t at = 2 * static_cast<size_t>(packed_weight(tile, terms, term, tile_channels, i));
                  for (int part = 0; part < 2; ++part)
                    packed[at + part] = weight(part, out, first_in + c, kernel_tap(phase, tap), kernel_time(p.kind, age));
                }
          first_in += c_in[source];
        }
      }
      node->weights_at[number] = keep_numbers(packed, node->variant.half_in);
    }
  }

  // ---- nodes ----

  void intake() {
    Node node;
    node.what = What::intake;
    node.name = "intake";
    node.intake.ring = rings_[input_].ring;
    node.intake.streams = options_.streams;
    node.target_at = rings_[input_].at;
    node.blocks = tiles(options_.streams * model_.bins, kThreads);
    plan_->nodes.push_back(node);
  }

  void read(Node* node, int ring, int delay) {
    Conv& p = node->conv;
    p.sources[p.n_sources] = Source{rings_[ring].ring, delay};
    node->source_at[p.n_sources] = rings_[ring].at;
    node->variant.half_in = rings_[ring].half;
    ++p.n_sources;
  }

  // Two numbers a pair: a ring counts pairs, a target numbers.
  void write_ring(Node* node, Target* target, int number) {
    const Ring& ring = rings_[number].ring;
    *target = Target{nullptr, 2 * ring.stream_stride, 2 * ring_slot_pairs(ring.bins, ring.channels), ring.slots, 2 * kPad * ring.channels,
                     2 * ring.channels, 2, 1};
    node->target_at = rings_[number].at;
    node->variant.half_out = rings_[number].half;
  }

  void write_mask(Node* node) {
    node->conv.target = Target{nullptr, 2 * model_.bins, 0, 1, 0, 1, 0, model_.bins};
    node->to_mask = true;
    node->variant.half_out = false;
  }

  // Everything that follows from sources, kind, c_out and columns.
  void cut(Node* node) {
    Conv& p = node->conv;
    double terms = 0;
    for (int number = 0; number < phases_of(p.kind); ++number) {
      p.terms[number] = 0;
      for (int s = 0; s < p.n_sources; ++s) p.terms[number] += frames_of(p.kind) * window_pairs(phase_of(p.kind, number), p.sources[s].ring);
      terms += p.terms[number];
    }
    const bool parts = p.kind == kProjection;
    const Work work{p.c_out, p.streams * p.columns, phases_of(p.kind), terms / phases_of(p.kind),
                    static_cast<double>(node->variant.half_in ? sizeof(HalfComplex) : sizeof(Complex)), node->variant.half_in};
    const Choice choice = cut_conv(work, options_, parts);
    p.cut = choice.cut;
    p.grid = choice.grid;
    node->variant.ct = choice.variant.ct;
    node->variant.nt = choice.variant.nt;
    node->variant.parts = parts;
    node->cycles = choice.cycles;
    node->blocks = p.grid.channel_tiles * p.grid.column_tiles * phases_of(p.kind);
    plan_->macs += terms * p.c_out * p.columns * (parts ? 2 : 4);
  }

  Node conv_node(Kind kind, const std::string& name, int c_out, int columns) {
    Node node;
    node.what = What::conv;
    node.name = name;
    node.conv.kind = kind;
    node.conv.streams = options_.streams;
    node.conv.columns = columns;
    node.conv.c_out = c_out;
    node.conv.lag = kNoLag;
    node.conv.slope = 1.0f;
    return node;
  }

  void affine(Node* node, const ConvWeights& layer) {
    node->gain_at = keep(layer.gain);
    node->bias_at = keep(layer.bias);
    node->conv.slope = layer.slope;
  }

  void encoder(int i) {
    const ConvWeights& layer = model_.encoder[i];
    Node node = conv_node(kEncoder, "encoder " + std::to_string(i), layer.c_out, model_.bins_of(i + 1));
    read(&node, i == 0 ? input_ : skips_[i - 1], 0);
    write_ring(&node, &node.conv.target, skips_[i]);
    cut(&node);
    pack(&node, {layer.c_in}, [&](int part, int out, int in, int kf, int kt) {
      return layer.w[(((static_cast<size_t>(part) * layer.c_out + out) * layer.c_in + in) * 5 + kf) * 2 + kt];
    });
    affine(&node, layer);
    plan_->nodes.push_back(node);
  }

  void decoder(int j) {
    const int n = model_.depth();
    const ConvWeights& layer = model_.decoder[j];
    Node node = conv_node(kDecoder, "decoder " + std::to_string(j), layer.c_out, model_.bins_of(n - j));
    read(&node, frames_[j], 0);
    read(&node, skips_[n - 1 - j], lag(j));
    if (model_.look_ahead) node.conv.lag = j;
    if (j + 1 < n)
      write_ring(&node, &node.conv.target, frames_[j + 1]);
    else
      write_mask(&node);
    cut(&node);
    pack(&node, {rings_[frames_[j]].ring.channels, rings_[skips_[n - 1 - j]].ring.channels}, [&](int part, int out, int in, int kf, int kt) {
      return layer.w[(((static_cast<size_t>(part) * layer.c_in + in) * layer.c_out + out) * 5 + kf) * 2 + kt];
    });
    affine(&node, layer);
    plan_->nodes.push_back(node);
  }

  // Rows of the projection stand in the frame's order, f * channels + c; the file has c * F + f.
  void projection() {
    const int channels = model_.projection_channels, bins = model_.bins_of(model_.depth()), rows = channels * bins;
    const int inputs = model_.recurrent.back().hidden;
    Node node = conv_node(kProjection, "projection", rows, 1);
    read(&node, features_.back(), 0);
    write_ring(&node, &node.conv.target, frames_[0]);
    cut(&node);
    const auto file_row = [&](int row) { return row % channels * bins + row / channels; };
    pack(&node, {inputs}, [&](int part, int out, int in, int, int) { return model_.projection[part].w[static_cast<size_t>(file_row(out)) * inputs + in]; });
    std::vector<float> gain(2 * static_cast<size_t>(rows), 1.0f), bias(gain.size());
    for (int part = 0; part < 2; ++part)
      for (int row = 0; row < rows; ++row) bias[part * rows + row] = model_.projection[part].bias[file_row(row)];
    node.gain_at = keep(gain);
    node.bias_at = keep(bias);
    plan_->nodes.push_back(node);
  }

  void recurrent(int l) {
    const RecurrentWeights& layer = model_.recurrent[l];
    const int source = l == 0 ? skips_.back() : features_[l - 1];
    Node node;
    node.what = What::recurrent;
    node.name = "recurrent " + std::to_string(l);
    Recurrent& p = node.recurrent;
    p.x = rings_[source].ring;
    p.streams = options_.streams;
    p.hidden = layer.hidden;
    p.inputs = p.x.bins * p.x.channels;
    p.gru = model_.gru;
    p.h_stride = p.c_stride = stride_of(sizeof(float));
    node.source_at[0] = rings_[source].at;
    node.h_at = h_[l];
    node.c_at = c_[l];
    node.variant.half_in = options_.half;
    write_ring(&node, &p.target, features_[l]);

    const Work work{p.hidden, p.streams, 1, static_cast<double>(p.inputs + p.hidden), options_.half ? 16.0 : 32.0, options_.half};
    const Choice choice = cut_recurrent(work, options_);
    p.cut = choice.cut;
    p.grid = choice.grid;
    node.variant.ct = 1;
    node.variant.nt = choice.variant.nt;
    node.cycles = choice.cycles;
    node.blocks = p.grid.channel_tiles * p.grid.column_tiles;
    plan_->macs += static_cast<double>(p.inputs + p.hidden) * p.hidden * 4 * (p.gru ? 3 : 4);

    const int units = 1 << p.cut.lanes_log2, terms = p.inputs + p.hidden;
    std::vector<float> packed(static_cast<size_t>(p.grid.channel_tiles) * terms * units * 8), bias(static_cast<size_t>(2) * p.hidden * 4);
    for (int unit = 0; unit < p.hidden; ++unit)
      for (int net = 0; net < 2; ++net)
        for (int gate = 0; gate < 4; ++gate) {
          for (int k = 0; k < terms; ++k) {
            const size_t at = static_cast<size_t>(packed_weight(unit / units, terms, k, units, unit % units)) * 8 + net * 4 + gate;
            packed[at] = recurrent_weight(layer.nets[net], p, gate, unit, k);
          }
          bias[(net * p.hidden + unit) * 4 + gate] = recurrent_bias(layer.nets[net], p, gate, unit);
        }
    node.weights_at[0] = keep_numbers(packed, options_.half);
    node.bias_at = keep(bias);
    plan_->nodes.push_back(node);
  }

  // Gates of a GRU here: r, z, what n takes from x, what n takes from h (r multiplies only that).
  static float recurrent_weight(const NetWeights& net, const Recurrent& p, int gate, int unit, int k) {
    const bool of_x = k < p.inputs;
    if (p.gru && ((gate == 2 && !of_x) || (gate == 3 && of_x))) return 0.0f;
    const size_t row = static_cast<size_t>(p.gru && gate == 3 ? 2 : gate) * p.hidden + unit;
    if (!of_x) return net.w_h[row * p.hidden + (k - p.inputs)];
    const int f = k / p.x.channels, c = k % p.x.channels;  // the file's order of features is channel * F + f
    return net.w_x[row * p.inputs + c * p.x.bins + f];
  }
  static float recurrent_bias(const NetWeights& net, const Recurrent& p, int gate, int unit) {
    const size_t row = static_cast<size_t>(p.gru && gate == 3 ? 2 : gate) * p.hidden + unit;
    if (p.gru && gate == 2) return net.b_x[row];
    if (p.gru && gate == 3) return net.b_h[row];
    return net.b_x[row] + net.b_h[row];
  }

  const Model& model_;
  const PlanOptions options_;
  Plan* plan_;
  std::vector<Placed> rings_;
  int input_ = 0;
  std::vector<int> skips_, features_, frames_;   // rings behind encoder layers, recurrent layers, projection and decoder layers
  std::vector<size_t> h_, c_;
};

}  // namespace

bool make_plan(const Model& model, const PlanOptions& options, Plan* plan, std::string* why) {
  *plan = Plan();
  return Builder(model, options, plan).build(why);
}

std::vector<Node> bind(const Plan& plan, const Memory& memory, unsigned frame) {
  const auto state = [&](size_t at) { return static_cast<void*>(static_cast<unsigned char*>(memory.states) + at); };
  const auto weight = [&](size_t at) { return static_cast<const void*>(static_cast<const unsigned char*>(memory.weights) + at); };
  const auto floats = [&](size_t at) { return static_cast<const float*>(weight(at)); };
  std::vector<Node> nodes = plan.nodes;
  for (Node& node : nodes) {
    if (node.what == What::intake) {
      node.intake.spectrum = memory.spectrum;
      node.intake.ring.base = state(node.target_at);
      node.intake.frame = frame;
      node.intake.bad_values = memory.bad_values;
    } else if (node.what == What::recurrent) {
      Recurrent& p = node.recurrent;
      p.frame = frame;
      p.x.base = state(node.source_at[0]);
      p.weights = weight(node.weights_at[0]);
      p.bias = floats(node.bias_at);
      p.h = static_cast<float*>(state(node.h_at));
      p.c = static_cast<float*>(state(node.c_at));
      p.target.base = state(node.target_at);
    } else {
      Conv& p = node.conv;
      p.frame = frame;
      for (int s = 0; s < p.n_sources; ++s) p.sources[s].ring.base = state(node.source_at[s]);
      for (int number = 0; number < phases_of(p.kind); ++number) p.weights[number] = weight(node.weights_at[number]);
      p.gain = floats(node.gain_at);
      p.bias = floats(node.bias_at);
      p.target.base = node.to_mask ? memory.mask : state(node.target_at);
      p.past = p.lag == kNoLag ? nullptr : memory.past;
    }
  }
  return nodes;
}

bool plan_tensor(Tensor* p, int* ct, int* blocks_x, int* blocks_y) {
  *ct = p->c_out >= 4 ? 8 : 1;
  const int taps = p->kernel_f * p->kernel_t, room = TensorThread<float, 8>::kShared;
  if (taps < 1 || taps * *ct > room) return false;
  p->chunk = std::min(p->c_in, room / (taps * *ct));
  const double positions = static_cast<double>(p->n) * p->f_out * p->t_out;
  if (!(positions >= 1 && positions <= std::numeric_limits<int>::max() - kThreads)) return false;
  *blocks_x = tiles(static_cast<int>(positions), kThreads);
  *blocks_y = tiles(p->c_out, *ct);
  return *blocks_y <= 65535;
}

}  // namespace cuda
}  // namespace ek
