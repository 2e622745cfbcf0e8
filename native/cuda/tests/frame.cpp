// The frame step on the CPU: the nodes that a GPU would run, thread for thread, streamed over several frames for several streams at
// once, against an offline computation in double that shares nothing with them.
//
//   frame [full | cuts]     full: also the full-width model (slow); cuts: only print how its work is cut
#include <cstdio>
#include <cstring>

#include "emulate.h"
#include "reference.h"

using namespace ek::cuda;

namespace {

int failures = 0;

#define CHECK(condition, ...)                                      \
  do {                                                             \
    if (!(condition)) {                                            \
      ++failures;                                                  \
      std::printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                    \
      std::printf("\n");                                           \
    }                                                              \
  } while (0)

// Arenas in plain memory behind a plan.
struct Engine {
  Plan plan;
  std::vector<unsigned char> states;
  std::vector<float> spectrum, mask;
  std::vector<int> past;
  unsigned bad_values = 0, frame;
  void* aligned = nullptr;

  Engine(const Model& model, const PlanOptions& options, unsigned first_frame) : frame(first_frame) {
    std::string why;
    if (!make_plan(model, options, &plan, &why)) throw std::runtime_error(why);
    states.resize(plan.state_bytes() + 256);
    aligned = reinterpret_cast<void*>((reinterpret_cast<size_t>(states.data()) + 255) / 256 * 256);
    spectrum.resize(static_cast<size_t>(options.streams) * 2 * plan.bins);
    mask.resize(spectrum.size());
    past.assign(options.streams, kLive);
  }
  void step(bool ending) {
    // As the GPU does it: the arguments of frame % period, not those of the frame itself.
    const Memory memory{plan.weights.data(), aligned, spectrum.data(), mask.data(), &bad_values, ending ? past.data() : nullptr};
    for (const Node& node : bind(plan, memory, frame % plan.period)) emulate(node);
    ++frame;
  }
  void reset(int stream) {
    std::memset(static_cast<unsigned char*>(aligned) + stream * plan.stream_bytes, 0, plan.stream_bytes);
    past[stream] = kLive;
  }
};

reference::Clip noise(int bins, int frames, unsigned seed) {
  reference::Random random(seed);
  reference::Clip clip(1, bins, frames);
  for (auto& v : clip.v) v = reference::Number(random.normal(), random.normal());
  return clip;
}

struct Case {
  const char* name;
  reference::Widths widths;
  bool look_ahead, gru, half;
  int streams, processors, frames;
  double allowed;  // of the mask, whose rms is near 1
};

// Every stream hears a clip of its own. Stream 0 starts with the engine, stream s is reset and starts over at frame 2 s, in the middle
// of what it heard before, and every clip ends, so that its last frames have to be drained.
void stream_equals_offline(const Case& test) {
  const Model model = reference::random_model(test.widths, test.look_ahead, test.gru, 7);
  PlanOptions options;
  options.streams = test.streams;
  options.half = test.half;
  options.processors = test.processors;
  Engine engine(model, options, 0xfffffffdu);  // the frame counter wraps on the way
  // 2^32 is a multiple of every period, so wrapping is harmless.
  CHECK(4294967296.0 / engine.plan.period == std::floor(4294967296.0 / engine.plan.period), "%s: period %u", test.name, engine.plan.period);
  const int recurrent = static_cast<int>(test.widths.hidden.size()), depth = static_cast<int>(test.widths.encoder.size());
  CHECK(static_cast<int>(engine.plan.nodes.size()) == 2 + 2 * depth + recurrent, "%s: %zu nodes", test.name, engine.plan.nodes.size());

  std::vector<reference::Clip> clips, masks;
  for (int s = 0; s < test.streams; ++s) {
    clips.push_back(noise(model.bins, test.frames, 100 + s));
    masks.push_back(reference::mask(model, clips.back()));
  }
  reference::Random rubbish(9);
  double worst = 0, power = 0;
  size_t count = 0;
  const int bins = model.bins, delay = engine.plan.delay, last = test.frames + delay + 2 * (test.streams - 1);
  for (int now = 0; now < last; ++now) {
    bool ending = false;
    for (int s = 0; s < test.streams; ++s) {
      const int t = now - 2 * s;  // of this stream's clip
      if (t == 0 && s > 0) engine.reset(s);
      if (test.look_ahead && t >= test.frames) {
        engine.past[s] = t - test.frames + 1;
        ending = true;
      }
      for (int f = 0; f < bins; ++f) {
        const bool inside = t >= 0 && t < test.frames;
        engine.spectrum[(s * 2 + 0) * bins + f] = inside ? static_cast<float>(clips[s].at(0, f, t).real()) : rubbish.normal();
        engine.spectrum[(s * 2 + 1) * bins + f] = inside ? static_cast<float>(clips[s].at(0, f, t).imag()) : rubbish.normal();
      }
    }
    engine.step(ending);
    for (int s = 0; s < test.streams; ++s) {
      const int t = now - 2 * s - delay;
      if (t < 0 || t >= test.frames) continue;
      for (int f = 0; f < bins; ++f) {
        const reference::Number want = masks[s].at(0, f, t);
        const reference::Number got(engine.mask[(s * 2 + 0) * bins + f], engine.mask[(s * 2 + 1) * bins + f]);
        const double off = std::abs(got - want);
        if (!(off <= worst)) worst = off;  // NaN counts as worst
        power += std::norm(want);
        ++count;
      }
    }
  }
  const double rms = std::sqrt(power / static_cast<double>(count) / 2);
  CHECK(worst <= test.allowed * rms, "%s: off by %g, rms %g", test.name, worst, rms);
  CHECK(engine.bad_values == 0, "%s: %u", test.name, engine.bad_values);
  CHECK(count == static_cast<size_t>(test.streams) * test.frames * bins, "%s: %zu", test.name, count);
  std::printf("%-34s %2zu nodes  %d streams  off by %.2g of rms %.2g\n", test.name, engine.plan.nodes.size(), test.streams, worst / rms, rms);
  std::fflush(stdout);
}

void a_bad_number_is_taken_as_zero_and_counted() {
  const Model model = reference::random_model({16, {3, 4}, {5, 5}, 4, {3, 1}}, true, false, 3);
  PlanOptions options;
  options.streams = 2;
  Engine clean(model, options, 0), dirty(model, options, 0);
  for (int now = 0; now < 5; ++now) {
    reference::Random random(now);
    clean.spectrum = random.normals(clean.spectrum.size(), 1);
    dirty.spectrum = clean.spectrum;
    if (now == 1) {
      clean.spectrum[5] = clean.spectrum[40] = 0;
      dirty.spectrum[5] = std::numeric_limits<float>::quiet_NaN();
      dirty.spectrum[40] = -std::numeric_limits<float>::infinity();
    }
    clean.step(false);
    dirty.step(false);
    CHECK(clean.mask == dirty.mask, "frame %d", now);
  }
  CHECK(dirty.bad_values == 2, "%u", dirty.bad_values);
}

void streams_do_not_touch_each_other() {
  const Model model = reference::random_model({32, {3, 5, 6}, {7, 4}, 5, {6, 3, 1}}, true, false, 4);
  PlanOptions one, five;
  five.streams = 5;
  Engine alone(model, one, 0), together(model, five, 0);
  for (int now = 0; now < 6; ++now) {
    reference::Random random(now);
    alone.spectrum = random.normals(64, 1);
    together.spectrum = random.normals(5 * 64, 1);
    std::memcpy(&together.spectrum[3 * 64], alone.spectrum.data(), 64 * sizeof(float));
    alone.step(false);
    together.step(false);
    for (int i = 0; i < 64; ++i)  // another cut may add in another order
      CHECK(std::abs(alone.mask[i] - together.mask[3 * 64 + i]) <= 2e-5, "frame %d: %g, %g", now, alone.mask[i], together.mask[3 * 64 + i]);
  }
}

void a_model_that_cannot_be_is_refused() {
  const reference::Widths widths{32, {3, 5}, {7, 4}, 5, {6, 1}};
  Plan plan;
  std::string why;
  const auto refused = [&](const char* what, const PlanOptions& options, void (*spoil)(Model*)) {
    Model model = reference::random_model(widths, true, false, 1);
    spoil(&model);
    why.clear();
    CHECK(!make_plan(model, options, &plan, &why) && !why.empty(), "%s", what);
  };
  PlanOptions none, many;
  none.streams = 0;
  many.streams = 4097;
  refused("no streams", none, [](Model*) {});
  refused("too many streams", many, [](Model*) {});
  refused("encoder weights", PlanOptions(), [](Model* m) { m->encoder[1].w.pop_back(); });
  refused("encoder gain", PlanOptions(), [](Model* m) { m->encoder[0].gain.push_back(1); });
  refused("recurrent weights", PlanOptions(), [](Model* m) { m->recurrent[0].nets[1].w_h.clear(); });
  refused("projection", PlanOptions(), [](Model* m) { m->projection[0].bias.pop_back(); });
  refused("decoder input", PlanOptions(), [](Model* m) { m->decoder[1].c_in = 8; });
  refused("decoder output", PlanOptions(), [](Model* m) { m->decoder.pop_back(); });
  refused("bins", PlanOptions(), [](Model* m) { m->bins = 24; });
  refused("nothing recurrent", PlanOptions(), [](Model* m) { m->recurrent.clear(); });
}

// A node of the plan per launch: sixteen for the network as published, whatever its precision and the number of streams.
void dccrn_is_sixteen_nodes(bool print) {
  const reference::Widths full{256, {16, 32, 64, 128, 128, 128}, {128, 128}, 128, {128, 128, 64, 32, 16, 1}};
  const Model model = reference::random_model(full, true, false, 1);
  for (const bool half : {false, true})
    for (const int streams : {1, 8, 64})
      for (const int processors : {8, 132}) {
        PlanOptions options;
        options.half = half;
        options.streams = streams;
        options.processors = processors;
        Plan plan;
        std::string why;
        CHECK(make_plan(model, options, &plan, &why), "%s", why.c_str());
        CHECK(plan.nodes.size() == 16, "%zu", plan.nodes.size());
        CHECK(plan.period == 8 && plan.delay == 6, "%u %d", plan.period, plan.delay);
        CHECK(std::abs(plan.macs - 53.33e6) < 0.02e6, "%f", plan.macs);  // 53.33 M as counted elsewhere
        if (!print) continue;
        std::printf("%s, %d streams, %d processors: %.1f MB of weights, %.2f MB of states a stream\n", half ? "fp16" : "fp32", streams, processors,
                    static_cast<double>(plan.weights.size()) / 1e6, static_cast<double>(plan.stream_bytes) / 1e6);
        for (const Node& node : plan.nodes) {
          if (node.what == What::intake) continue;
          const Cut& cut = node.what == What::conv ? node.conv.cut : node.recurrent.cut;
          std::printf("  %-12s %5d blocks  %d x %d of a thread, %3d lanes %3d splits %3d groups\n", node.name.c_str(), node.blocks, node.variant.ct,
                      node.variant.nt, 1 << cut.lanes_log2, 1 << cut.splits_log2, 1 << cut.groups_log2);
        }
      }
}

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::strcmp(argv[1], "full") == 0;
  const bool cuts = argc > 1 && std::strcmp(argv[1], "cuts") == 0;
  dccrn_is_sixteen_nodes(cuts);
  if (cuts) return failures ? 1 : 0;
  a_model_that_cannot_be_is_refused();
  a_bad_number_is_taken_as_zero_and_counted();
  streams_do_not_touch_each_other();
  // Of the mask's rms. fp32: some tens of roundings of 6e-8 through 14 layers; fp16: the same with activations of 11 bits, 5e-4.
  const double f32 = 1e-5, f16 = 1e-2;
  const reference::Widths odd{32, {3, 7, 5}, {6, 9}, 4, {11, 2, 1}};
  const reference::Widths tiny{64, {4, 8, 8}, {8, 8}, 8, {8, 4, 1}};
  const reference::Widths pruned{64, {13, 27, 41, 33}, {21, 17}, 35, {29, 18, 9, 1}};
  stream_equals_offline({"one layer", {4, {1}, {1}, 1, {1}}, true, false, false, 1, 8, 5, f32});
  stream_equals_offline({"odd widths", odd, true, false, false, 3, 8, 9, f32});
  stream_equals_offline({"odd widths, causal", odd, false, false, false, 2, 132, 9, f32});
  stream_equals_offline({"odd widths, GRU", odd, true, true, false, 2, 132, 9, f32});
  stream_equals_offline({"odd widths, GRU, causal, fp16", odd, false, true, true, 3, 1, 9, f16});
  stream_equals_offline({"tiny", tiny, true, false, false, 5, 2, 12, f32});
  stream_equals_offline({"tiny, fp16", tiny, true, false, true, 17, 132, 8, f16});
  stream_equals_offline({"tiny, 3 recurrent layers", {64, {4, 8, 8}, {8, 5, 3}, 8, {8, 4, 1}}, true, false, false, 2, 8, 8, f32});
  stream_equals_offline({"pruned", pruned, true, false, false, 2, 8, 8, f32});
  stream_equals_offline({"pruned, one processor", pruned, true, false, false, 9, 1, 6, f32});
  stream_equals_offline({"pruned, fp16", pruned, true, false, true, 2, 132, 8, f16});
  stream_equals_offline({"eight layers deep", {256, {2, 3, 4, 3, 2, 3, 4, 5}, {6, 6}, 3, {4, 3, 2, 3, 4, 3, 2, 1}}, true, false, false, 2, 8, 20, f32});
  const reference::Widths half_width{256, {8, 16, 32, 64, 64, 64}, {64, 64}, 64, {64, 64, 32, 16, 8, 1}};
  stream_equals_offline({"half width", half_width, true, false, false, 1, 8, 8, f32});
  if (full) {
    const reference::Widths dccrn{256, {16, 32, 64, 128, 128, 128}, {128, 128}, 128, {128, 128, 64, 32, 16, 1}};
    stream_equals_offline({"DCCRN", dccrn, true, false, false, 1, 132, 8, f32});
    stream_equals_offline({"DCCRN, 8 streams on Xavier", dccrn, true, false, false, 8, 8, 1, f32});
    stream_equals_offline({"DCCRN, fp16", dccrn, true, false, true, 2, 8, 4, f16});
  }
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures ? 1 : 0;
}
