// run_bundle [--sliding] BUNDLE RESULT INPUTS OUTPUTS: runs a bundle's flow.json on the TensorRT engines that were built for it.
//
//   BUNDLE/flow.json                      what runs on what; edgekit/flow.py is the definition
//   RESULT/<engine>/model.engine          as finish.sh leaves them, in its result's folder `engines`
//   INPUTS/<window>/<flow input>.npy      float32, after preprocess.json; windows are taken in the order of their names
//   OUTPUTS/<window>/<flow output>.npy    and on the screen
//
// --sliding: every window overlaps the one before as flow.json's `keep` steps say, so what they keep is not computed again.
// `make run_bundle` beside ek_trt's sources builds this. Engines, files and the flow itself are ek_trt's (engine.h, clips.h, flow.h); what a
// program of your own needs is here: reading flow.json, one call a window, keeping, clamping.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "clips.h"
#include "files.h"
#include "flow.h"
#include "json.h"
#include "stop.h"

namespace {

using ek::Json, ek::Stop;

// A member that may be missing: then there is nothing in it.
const Json kNoMembers = Json::object(), kNoItems = Json::array();
const Json& part(const Json& object, const std::string& name, const Json& none) { return object.find(name) ? *object.find(name) : none; }

std::string field(const Json& value) {
  const std::string text = value.kind() == Json::kString ? value.text() : value.dump();
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ') throw Stop(ek::kDamaged, "flow.json: `" + text + "` holds a blank");
  }
  return text;
}

// What the host computes: the members of its step in the order in which flow.h wants them.
const std::map<std::string, std::vector<std::string>> kHost = {
    {"stft", {"from", "give", "win_length", "hop_length", "n_fft", "delay", "chunk"}},
    {"masked_istft", {"spectrum", "masks", "give", "win_length", "hop_length", "n_fft", "delay", "chunk", "mask", "samples"}},
    {"match", {"speech", "noisy", "give"}},
    {"snr", {"speech", "noisy", "give", "low", "high"}},
    {"alpha", {"snr_db", "give", "at_knee", "knee_db", "full_db", "floor"}},
    {"blend", {"share", "of", "rest", "give"}},
    {"normalize", {"from", "give", "eps"}},
};

std::string host_line(const Json& step) {
  const std::string kind = step.at("step").text();
  if (kind == "preprocess" || kind == "keep" || kind == "clamp") return "";  // before, here, and here
  const auto keys = kHost.find(kind);
  if (keys == kHost.end()) throw Stop(ek::kUsage, "flow.json: host step `" + kind + "` is not known here");
  std::string line = kind;
  for (const std::string& key : keys->second) {
    const bool is_zero_without = key == "delay" || key == "chunk";
    line += "\t" + (is_zero_without && !step.find(key) ? "0" : field(step.at(key)));
  }
  return line + "\n";
}

// flow.json in the words of flow.h.
ek::Flow read_flow(const Json& json) {
  std::string text;
  for (const auto& input : json.at("inputs").members()) {
    std::string shape;
    for (const Json& length : input.second.at("shape").items()) shape += (shape.empty() ? "" : ",") + field(length);
    text += "input\t" + field(Json(input.first)) + "\t" + (shape.empty() ? "-" : shape) + "\n";
  }
  for (const Json& step : json.at("steps").items()) {
    const std::string engine = field(step.at("engine"));
    text += "step\t" + engine + "\n";
    for (const char* kind : {"feed", "each", "stack", "give"}) {
      for (const auto& wire : part(step, kind, kNoMembers).members()) text += std::string(kind) + "\t" + field(Json(wire.first)) + "\t" + field(wire.second) + "\n";
    }
    for (const Json& state : part(part(json, "states", kNoMembers), engine, kNoItems).items()) {
      text += "state\t" + field(state.at("in")) + "\t" + field(state.at("out")) + "\t" + field(state.at("init")) + "\n";
    }
  }
  for (const Json& step : part(json, "host_steps", kNoItems).items()) text += host_line(step);
  for (const Json& name : json.at("outputs").items()) text += "output\t" + field(name) + "\n";
  return ek::read_flow(text, "flow.json");
}

// What is kept of an engine's runs from window to window.
struct Kept {
  size_t count = 0;  // elements that the next window has too
  std::vector<ek::Outputs> last_window, this_window;
};

class Bundle {
 public:
  Bundle(const std::string& folder, const std::string& result, bool is_sliding) : json_(Json::parse(ek::read_file(folder + "/flow.json"), "flow.json")), flow_(read_flow(json_)) {
    for (const ek::Step& step : flow_.steps) engines_[step.engine].reset(new ek::Engine(result + "/" + step.engine + "/model.engine"));
    for (const Json& host : part(json_, "host_steps", kNoItems).items()) {
      if (is_sliding && host.at("step").text() == "keep") keep(host.at("tensor").text(), static_cast<size_t>(host.at("count").number()));
      if (is_sliding && host.find("ema")) throw Stop(ek::kUsage, "flow.json: `" + host.at("step").text() + "` averages over windows, which is not done here");
    }
  }

  const std::vector<ek::Port>& inputs() const { return flow_.inputs; }
  const std::map<std::string, int>& runs() const { return runs_; }

  ek::Tensors run(const ek::Tensors& inputs) {
    const ek::Run run = [this](const std::string& engine, const ek::Feeds& feeds, ek::Outputs* outputs) { run_or_recall(engine, feeds, outputs); };
    ek::Tensors made = ek::run_flow(flow_, engines_, inputs, run);
    for (auto& one : kept_) {
      if (one.second.count >= one.second.this_window.size()) throw Stop(ek::kUsage, "flow.json: `keep` leaves nothing new of a window of `" + one.first + "`");
      one.second.last_window.swap(one.second.this_window);
      one.second.this_window.clear();
    }
    for (const Json& host : part(json_, "host_steps", kNoItems).items()) {
      if (host.at("step").text() == "clamp") clamp(host, &made);
    }
    return made;
  }

 private:
  void keep(const std::string& port, size_t count) {
    for (const ek::Step& step : flow_.steps) {
      for (const ek::Wire& wire : step.stack) {
        if (wire.port != port) continue;
        if (!step.states.empty()) throw Stop(ek::kUsage, "engine `" + step.engine + "` has states, so its outputs cannot be kept");
        for (const ek::Step& other : flow_.steps) {
          if (&other != &step && other.engine == step.engine) throw Stop(ek::kUsage, "engine `" + step.engine + "` stands in two steps, so its outputs cannot be kept");
        }
        kept_[step.engine].count = count;
      }
    }
  }

  // Element i of this window was element i + (what is new) of the last one, as far as they overlap.
  void run_or_recall(const std::string& engine, const ek::Feeds& feeds, ek::Outputs* outputs) {
    const auto found = kept_.find(engine);
    if (found != kept_.end() && !found->second.last_window.empty() && found->second.this_window.size() < found->second.count) {
      const Kept& kept = found->second;
      *outputs = kept.last_window[kept.last_window.size() - kept.count + kept.this_window.size()];
    } else {
      engines_.at(engine)->run(feeds, outputs);
      runs_[engine]++;
    }
    if (found != kept_.end()) found->second.this_window.push_back(*outputs);
  }

  static void clamp(const Json& host, ek::Tensors* tensors) {
    const float low = static_cast<float>(host.at("low").number()), high = static_cast<float>(host.at("high").number());
    for (const Json& name : host.at("outputs").items()) {
      const auto found = tensors->find(name.text());
      if (found == tensors->end()) throw Stop(ek::kUsage, "flow.json: `clamp` asks for `" + name.text() + "`, which is no output");
      for (float& value : found->second.values) value = std::min(high, std::max(low, value));
    }
  }

  Json json_;
  ek::Flow flow_;
  ek::Engines engines_;
  std::map<std::string, Kept> kept_;
  std::map<std::string, int> runs_;
};

void print(const std::string& window, const std::string& name, const ek::Tensor& tensor) {
  printf("%s %s %s", window.c_str(), name.c_str(), ek::to_text(tensor.shape).c_str());
  for (size_t i = 0; i < std::min<size_t>(tensor.values.size(), 8); i++) printf(" %.6g", static_cast<double>(tensor.values[i]));
  printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const bool is_sliding = argc > 1 && std::string(argv[1]) == "--sliding";
  if (argc != (is_sliding ? 6 : 5)) return fprintf(stderr, "usage: run_bundle [--sliding] BUNDLE RESULT INPUTS OUTPUTS\n"), ek::kUsage;
  const std::string inputs = argv[argc - 2], outputs = argv[argc - 1];
  try {
    Bundle bundle(argv[argc - 4], argv[argc - 3], is_sliding);
    for (const std::string& window : ek::list_clips(inputs)) {
      ek::make_folder(outputs + "/" + window);
      for (const auto& output : bundle.run(ek::read_clip(inputs + "/" + window, bundle.inputs()))) {
        ek::write_npy(outputs + "/" + window + "/" + output.first + ".npy", output.second);
        print(window, output.first, output.second);
      }
    }
    for (const auto& engine : bundle.runs()) printf("%s ran %d times\n", engine.first.c_str(), engine.second);
    return 0;
  } catch (const Stop& stop) {
    return fprintf(stderr, "run_bundle: %s\n", stop.what()), stop.code;
  } catch (const std::exception& error) {
    return fprintf(stderr, "run_bundle: %s\n", error.what()), ek::kBug;
  }
}
