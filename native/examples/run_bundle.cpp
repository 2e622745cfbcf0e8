// run_bundle [--sliding] BUNDLE RESULT INPUTS OUTPUTS: runs a bundle's flow.json on the TensorRT engines that were built for it.
//
//   BUNDLE/flow.json                      what runs on what; edgekit/flow.py is the definition
//   RESULT/<engine>/model.engine          as finish.sh leaves them
//   INPUTS/<window>/<flow input>.npy      float32, after preprocess.json; windows are taken in the order of their names
//   OUTPUTS/<window>/<flow output>.npy    and on the screen
//
// --sliding: every window starts where flow.json's `keep` steps say that it overlaps the one before, so what they keep is not computed again.
// `make run_bundle` beside ek_trt's sources builds this; their small headers do files, JSON and one engine, and the flow is all here.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <string>

#include "clips.h"
#include "engine.h"
#include "files.h"
#include "json.h"
#include "spectrum.h"
#include "stop.h"

namespace {

using ek::Json, ek::Shape, ek::Tensor, ek::Tensors;

// A member that may be missing: then there is nothing in it.
const Json& part(const Json& object, const std::string& name, const Json& none) { return object.find(name) ? *object.find(name) : none; }
const Json kNoMembers = Json::object(), kNoItems = Json::array();
const std::vector<Json::Member>& members(const Json& object, const char* name) { return part(object, name, kNoMembers).members(); }
const std::vector<Json>& items(const Json& object, const std::string& name) { return part(object, name, kNoItems).items(); }

Shape shape_of(const Json& list) {
  Shape shape;
  for (const Json& item : list.items()) shape.push_back(static_cast<int64_t>(item.number()));
  return shape;
}

const Tensor& need(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw ek::Stop(ek::kUsage, "flow.json asks for `" + name + "`, which no earlier step gives");
  return found->second;
}

// Flow tensors have no batch axis, engine tensors have a batch of 1.
ek::View with_batch(const Tensor& tensor) {
  Shape shape{1};
  shape.insert(shape.end(), tensor.shape.begin(), tensor.shape.end());
  return {tensor.values.data(), shape};
}

ek::View element(const Tensor& tensor, int64_t i) {  // element i of the first axis
  Shape shape = tensor.shape;
  shape[0] = 1;
  return {tensor.values.data() + i * ek::count_of(shape), shape};
}

Tensor without_batch(const ek::Outputs& outputs, const std::string& port) {
  const auto found = outputs.find(port);
  if (found == outputs.end() || found->second.shape.empty() || found->second.shape[0] != 1) throw ek::Stop(ek::kUsage, "no engine output `" + port + "` with batch 1");
  return {Shape(found->second.shape.begin() + 1, found->second.shape.end()), found->second.values};
}

class Bundle {
 public:
  Bundle(const std::string& folder, const std::string& result, bool is_sliding) : flow_(Json::parse(ek::read_file(folder + "/flow.json"), "flow.json")) {
    for (const Json& step : flow_.at("steps").items()) {
      const std::string& name = step.at("engine").text();
      if (!ek::is_file_name(name)) throw ek::Stop(ek::kDamaged, "flow.json: engine `" + name + "` cannot be a folder");
      if (!engines_.count(name)) engines_[name].reset(new ek::Engine(result + "/" + name + "/model.engine"));
    }
    for (const Json& step : host_steps()) {
      if (is_sliding && step.at("step").text() == "keep") keep_[step.at("tensor").text()] = static_cast<size_t>(step.at("count").number());
    }
  }

  std::vector<ek::Port> inputs() const {
    std::vector<ek::Port> ports;
    for (const auto& input : flow_.at("inputs").members()) ports.push_back({input.first, shape_of(input.second.at("shape"))});
    return ports;
  }

  Tensors run(Tensors tensors) {
    for (const Json& step : host_steps()) {
      if (step.at("step").text() == "stft") tensors[step.at("give").text()] = ek::spectrum_of(sizes(step), need(tensors, step.at("from").text()));
    }
    for (const Json& step : flow_.at("steps").items()) run_step(step, &tensors);
    for (const Json& step : host_steps()) after(step, &tensors);
    Tensors made;
    for (const Json& name : flow_.at("outputs").items()) made[name.text()] = need(tensors, name.text());
    return made;
  }

  const std::map<std::string, int>& runs() const { return runs_; }

 private:
  const std::vector<Json>& host_steps() const { return items(flow_, "host_steps"); }
  static ek::Stft sizes(const Json& step) {
    const auto number = [&](const char* name) { return step.find(name) ? static_cast<int64_t>(step.at(name).number()) : 0; };
    return {number("win_length"), number("hop_length"), number("n_fft"), number("delay"), number("chunk")};
  }

  // What the host does after the engines. `preprocess` was done before, `keep` is in run_step.
  static void after(const Json& step, Tensors* tensors) {
    const std::string& kind = step.at("step").text();
    if (kind == "masked_istft") {
      const Tensor &spectrum = need(*tensors, step.at("spectrum").text()), &masks = need(*tensors, step.at("masks").text());
      (*tensors)[step.at("give").text()] = ek::wave_of(sizes(step), spectrum, masks, step.at("mask").text().at(0), static_cast<int64_t>(step.at("samples").number()));
    } else if (kind == "clamp") {
      const float low = static_cast<float>(step.at("low").number()), high = static_cast<float>(step.at("high").number());
      for (const Json& name : step.at("outputs").items()) {
        for (float& value : tensors->at(name.text()).values) value = std::min(high, std::max(low, value));
      }
    } else if (kind != "preprocess" && kind != "keep" && kind != "stft") {
      throw ek::Stop(ek::kUsage, "flow.json: host step `" + kind + "` is not known here");
    }
  }

  void run_step(const Json& step, Tensors* tensors) {
    const std::string& name = step.at("engine").text();
    ek::Engine& engine = *engines_.at(name);
    const auto& stacked = members(step, "stack");
    int64_t runs = members(step, "each").empty() ? 1 : 0, first = 0;
    for (const auto& each : members(step, "each")) {
      const int64_t length = need(*tensors, each.second.text()).shape.at(0);
      if (length < 1 || (runs > 0 && length != runs)) throw ek::Stop(ek::kUsage, "engine `" + name + "`: `each` runs over axes of different lengths");
      runs = length;
    }
    // Of a kept stack the newest elements are run; the others are known from the window before.
    for (const auto& stack : stacked) {
      const bool is_known = keep_.count(stack.first) && rings_[stack.first].size() == static_cast<size_t>(runs);
      first = is_known ? std::min(runs - 1, static_cast<int64_t>(keep_[stack.first])) : 0;
      if (!is_known) break;
    }
    std::map<std::string, Tensor> states;
    const std::vector<Json>& pairs = items(flow_.at("states"), name);
    if (first > 0 && !pairs.empty()) throw ek::Stop(ek::kUsage, "engine `" + name + "` has states, so its outputs cannot be kept");
    for (const Json& pair : pairs) {
      const Shape shape = shape_of(pair.at("shape"));
      states[pair.at("in").text()] = {shape, std::vector<float>(static_cast<size_t>(ek::count_of(shape)), static_cast<float>(pair.at("init").number()))};
    }
    ek::Outputs outputs;
    ek::Feeds feeds;
    for (int64_t i = first; i < runs; i++) {
      for (const auto& feed : members(step, "feed")) feeds[feed.first] = with_batch(need(*tensors, feed.second.text()));
      for (const auto& each : members(step, "each")) feeds[each.first] = element(need(*tensors, each.second.text()), i);
      for (const auto& state : states) feeds[state.first] = {state.second.values.data(), state.second.shape};
      engine.run(feeds, &outputs);
      runs_[name]++;
      for (const Json& pair : pairs) states[pair.at("in").text()] = outputs.at(pair.at("out").text());
      for (const auto& stack : stacked) rings_[stack.first].push_back(without_batch(outputs, stack.first));
    }
    for (const auto& stack : stacked) {
      std::deque<Tensor>& ring = rings_[stack.first];
      while (ring.size() > static_cast<size_t>(runs)) ring.pop_front();
      Tensor& whole = (*tensors)[stack.second.text()];
      whole = {with_batch(ring.front()).shape, {}};
      whole.shape[0] = runs;
      for (const Tensor& piece : ring) whole.values.insert(whole.values.end(), piece.values.begin(), piece.values.end());
      if (!keep_.count(stack.first)) ring.clear();
    }
    for (const auto& give : members(step, "give")) (*tensors)[give.second.text()] = without_batch(outputs, give.first);
  }

  Json flow_;
  std::map<std::string, std::unique_ptr<ek::Engine>> engines_;
  std::map<std::string, size_t> keep_;               // elements of a stack that the next window has too
  std::map<std::string, std::deque<Tensor>> rings_;  // the last window's elements
  std::map<std::string, int> runs_;
};

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
        printf("%s %s %s", window.c_str(), output.first.c_str(), ek::to_text(output.second.shape).c_str());
        for (size_t i = 0; i < std::min<size_t>(output.second.values.size(), 8); i++) printf(" %.6g", static_cast<double>(output.second.values[i]));
        printf("\n");
      }
    }
    for (const auto& engine : bundle.runs()) printf("%s ran %d times\n", engine.first.c_str(), engine.second);
    return 0;
  } catch (const ek::Stop& stop) {
    return fprintf(stderr, "run_bundle: %s\n", stop.what()), stop.code;
  } catch (const std::exception& error) {
    return fprintf(stderr, "run_bundle: %s\n", error.what()), ek::kBug;
  }
}
