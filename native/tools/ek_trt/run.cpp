#include "run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "clips.h"
#include "device.h"
#include "engine.h"
#include "files.h"
#include "flow.h"
#include "npy.h"
#include "stop.h"

namespace ek {
namespace {

constexpr const char* kAlone = "engine";  // the name of an engine that comes without a flow

// What is run, loaded: engines, and how a clip goes through them.
struct Loaded {
  Engines engines;
  std::vector<Port> inputs;
  std::function<Tensors(const Engines&, const Tensors&, const Run&)> answer;
};

Loaded load_flow(const RunJob& job) {
  Loaded made;
  const Flow flow = read_flow(read_file(job.flow), job.flow);
  for (const Step& step : flow.steps) {
    if (!made.engines.count(step.engine)) made.engines[step.engine].reset(new Engine(job.engines + "/" + step.engine + "/model.engine", job.dla_core));
  }
  made.inputs = flow.inputs;
  made.answer = [flow](const Engines& engines, const Tensors& inputs, const Run& run) { return run_flow(flow, engines, inputs, run); };
  return made;
}

// One engine alone: files have its own shapes, batch included.
Loaded load_engine(const RunJob& job) {
  Loaded made;
  made.engines[kAlone].reset(new Engine(job.engine, job.dla_core));
  made.inputs = made.engines[kAlone]->inputs();
  made.answer = [](const Engines&, const Tensors& inputs, const Run& run) {
    Feeds feeds;
    for (const auto& input : inputs) feeds[input.first] = {input.second.values.data(), input.second.shape};
    Outputs outputs;
    run(kAlone, feeds, &outputs);
    return outputs;
  };
  return made;
}

struct Times {
  std::map<std::string, std::vector<double>> engines;  // device milliseconds a run
  std::vector<double> windows;                         // milliseconds a clip: its runs from host buffers to host buffers
};

Tensors answer(const Loaded& loaded, const Tensors& inputs, Times* times) {
  double window_ms = 0;
  const Run run = [&](const std::string& name, const Feeds& feeds, Outputs* outputs) {
    Engine& engine = *loaded.engines.at(name);
    const auto start = std::chrono::steady_clock::now();
    engine.run(feeds, outputs);
    window_ms += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (times) times->engines[name].push_back(engine.device_ms());
  };
  const Tensors outputs = loaded.answer(loaded.engines, inputs, run);
  if (times) times->windows.push_back(window_ms);
  return outputs;
}

// "" or which output is not finite.
std::string not_finite(const std::string& clip, const Tensors& outputs) {
  for (const auto& output : outputs) {
    for (const float value : output.second.values) {
      if (!std::isfinite(value)) return "clip `" + clip + "`: output `" + output.first + "` holds " + (std::isnan(value) ? "NaN" : "an infinity");
    }
  }
  return "";
}

void write_outputs(const std::string& folder, const Tensors& outputs) {
  make_folder(folder);
  for (const auto& output : outputs) write_npy(folder + "/" + output.first + ".npy", output.second);
}

Json or_null(int64_t bytes) { return bytes > 0 ? Json(bytes) : Json(); }

Json describe_engines(const Loaded& loaded, const Times& times) {
  Json made = Json::object();
  for (const auto& engine : loaded.engines) {
    const std::vector<double>& runs = times.engines.at(engine.first);
    Json row = Json::object();
    row.set("runs", static_cast<int64_t>(runs.size()));
    row.set("latency_ms", latency(runs));
    row.set("load_ms", engine.second->load_ms());
    row.set("device_memory_bytes", or_null(engine.second->memory_drop()));
    row.set("activation_bytes", engine.second->activation_bytes());
    row.set("engine_bytes", engine.second->engine_bytes());
    made.set(engine.first, row);
  }
  return made;
}

}  // namespace

double percentile(std::vector<double> samples, double share) {
  std::sort(samples.begin(), samples.end());
  const double rank = std::ceil(share * static_cast<double>(samples.size()) - 1e-9);  // 0.99 * 100 is a little over 99
  return samples[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

Json latency(const std::vector<double>& milliseconds) {
  Json made = Json::object();
  made.set("p50", percentile(milliseconds, 0.5));
  made.set("p99", percentile(milliseconds, 0.99));
  made.set("mean", std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / static_cast<double>(milliseconds.size()));
  made.set("n", static_cast<int64_t>(milliseconds.size()));
  return made;
}

void run_clips(const RunJob& job) {
  forget_file(job.report);
  const std::vector<std::string> clips = list_clips(job.inputs);
  const Json device = need_device();
  const int64_t free_before = free_memory();
  const Loaded loaded = job.flow.empty() ? load_engine(job) : load_flow(job);

  const Tensors first = read_clip(job.inputs + "/" + clips[0], loaded.inputs);
  for (int i = 0; i < job.warm_up; i++) answer(loaded, first, nullptr);
  const int64_t taken = free_before - free_memory();  // after the warm-up: kernels are loaded when they are first used

  Times times;
  std::string bad;
  for (const std::string& clip : clips) {
    const Tensors inputs = read_clip(job.inputs + "/" + clip, loaded.inputs);
    Tensors outputs;
    for (int i = 0; i < job.repeat; i++) outputs = answer(loaded, inputs, &times);
    if (bad.empty()) bad = not_finite(clip, outputs);
    write_outputs(job.outputs + "/" + clip, outputs);
  }

  double load_ms = 0;
  for (const auto& engine : loaded.engines) load_ms += engine.second->load_ms();
  Json report = device;
  report.set("clips", static_cast<int64_t>(clips.size()));
  report.set("warm_up", job.warm_up);
  report.set("repeat", job.repeat);
  report.set("latency_ms", latency(times.windows));
  report.set("engines", describe_engines(loaded, times));
  report.set("device_memory_bytes", or_null(taken));
  report.set("load_ms", load_ms);
  report.set("power_mode", power_mode());
  report.set("clocks_khz", clocks_khz());
  report.set("not_finite", bad.empty() ? Json() : Json(bad));
  write_file(job.report, report.dump() + "\n");
  if (!bad.empty()) throw Stop(kOutOfTolerance, bad);
}

}  // namespace ek
