#include "flow.h"

#include <algorithm>
#include <cmath>

#include "files.h"
#include "lists.h"
#include "stop.h"

namespace ek {
namespace {

constexpr long kMost = 1L << 30;

Shape read_shape(const std::string& text, const std::string& here) {
  Shape shape;
  if (text == "-") return shape;  // a scalar
  for (const std::string& word : split(text, ',')) shape.push_back(read_integer(word, 1, kMost, here));
  return shape;
}

const std::string& need_file_name(const std::string& name, const std::string& here) {
  if (!is_file_name(name)) throw Stop(kDamaged, here + "`" + name + "` cannot be a file's name");
  return name;
}

Stft read_sizes(const std::vector<std::string>& fields, size_t first, const std::string& here) {
  const auto at = [&](size_t i, long low) { return read_integer(fields[first + i], low, kMost, here); };
  return {at(0, 1), at(1, 1), at(2, 2), at(3, 0), at(4, 0)};
}

const Tensor& need(const Tensors& tensors, const std::string& name, const std::string& who) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw Stop(kUsage, "flow: `" + who + "` asks for `" + name + "`, which no earlier step gives");
  return found->second;
}

Shape with_batch(const Shape& shape) {
  Shape made{1};
  made.insert(made.end(), shape.begin(), shape.end());
  return made;
}

Tensor without_batch(const Tensor& tensor, const std::string& engine, const std::string& port) {
  if (tensor.shape.empty() || tensor.shape[0] != 1) {
    throw Stop(kUsage, "engine `" + engine + "`: output `" + port + "` has shape " + to_text(tensor.shape) + ", expected batch 1 in front");
  }
  return {Shape(tensor.shape.begin() + 1, tensor.shape.end()), tensor.values};
}

const Tensor& output_of(const Outputs& outputs, const std::string& engine, const std::string& port) {
  const auto found = outputs.find(port);
  if (found == outputs.end()) throw Stop(kUsage, "engine `" + engine + "` has no output `" + port + "`");
  return found->second;
}

// Element i of the first axis, with batch 1 in its place.
View element(const Tensor& tensor, int64_t i) {
  const Shape rest(tensor.shape.begin() + 1, tensor.shape.end());
  return {tensor.values.data() + i * count_of(rest), with_batch(rest)};
}

const Shape& shape_of(const Engine& engine, const Step& step, const std::string& port) {
  for (const Port& input : engine.inputs()) {
    if (input.name == port) return input.shape;
  }
  throw Stop(kUsage, "engine `" + step.engine + "` has no input `" + port + "`");
}

// How often a step runs: the length that its `each` tensors share, or once.
int64_t runs_of(const Step& step, const Tensors& tensors) {
  int64_t runs = step.each.empty() ? 1 : -1;
  for (const Wire& wire : step.each) {
    const Tensor& tensor = need(tensors, wire.tensor, step.engine);
    const int64_t length = tensor.shape.empty() ? 0 : tensor.shape[0];
    if (length < 1 || (runs >= 0 && length != runs)) throw Stop(kUsage, "engine `" + step.engine + "`: `each` runs over axes of different lengths");
    runs = length;
  }
  return runs;
}

void run_step(const Step& step, const Engine& engine, const Run& run, Tensors* tensors) {
  Tensors states;
  for (const State& state : step.states) {
    const Shape& shape = shape_of(engine, step, state.in);
    states[state.in] = {shape, std::vector<float>(static_cast<size_t>(count_of(shape)), state.init)};
  }
  Feeds feeds;
  for (const Wire& wire : step.feed) {
    const Tensor& tensor = need(*tensors, wire.tensor, step.engine);
    feeds[wire.port] = {tensor.values.data(), with_batch(tensor.shape)};
  }
  Tensors stacks;
  Outputs outputs;
  const int64_t runs = runs_of(step, *tensors);
  for (int64_t i = 0; i < runs; i++) {
    for (const Wire& wire : step.each) feeds[wire.port] = element(need(*tensors, wire.tensor, step.engine), i);
    for (const auto& state : states) feeds[state.first] = {state.second.values.data(), state.second.shape};
    run(step.engine, feeds, &outputs);
    for (const State& state : step.states) states[state.in] = output_of(outputs, step.engine, state.out);
    for (const Wire& wire : step.stack) {
      const Tensor piece = without_batch(output_of(outputs, step.engine, wire.port), step.engine, wire.port);
      Tensor& stack = stacks[wire.tensor];
      if (i == 0) {
        stack.shape = with_batch(piece.shape);
        stack.shape[0] = runs;
      }
      stack.values.insert(stack.values.end(), piece.values.begin(), piece.values.end());
    }
  }
  for (auto& stack : stacks) (*tensors)[stack.first] = std::move(stack.second);
  for (const Wire& wire : step.give) (*tensors)[wire.tensor] = without_batch(output_of(outputs, step.engine, wire.port), step.engine, wire.port);
}

const float& scalar(const Tensor& tensor, const std::string& who) {
  if (tensor.values.size() != 1) throw Stop(kUsage, "flow: `" + who + "` takes one number, got " + to_text(tensor.shape));
  return tensor.values[0];
}

void same_size(const Tensor& a, const Tensor& b, const std::string& who) {
  if (a.values.size() != b.values.size()) throw Stop(kUsage, "flow: `" + who + "` takes tensors of one size, got " + to_text(a.shape) + " and " + to_text(b.shape));
}

double product(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// The speech at the gain at which it explains most of the noisy wave.
Tensor matched(const Tensor& speech, const Tensor& noisy) {
  same_size(speech, noisy, "match");
  const double power = product(speech.values, speech.values);
  const double gain = power > 0 ? product(noisy.values, speech.values) / power : 0.0;
  Tensor made = speech;
  for (float& value : made.values) value = static_cast<float>(value * gain);
  return made;
}

double estimate_db(const Tensor& speech, const Tensor& noisy, double low, double high) {
  same_size(speech, noisy, "snr");
  double rest = 0;
  for (size_t i = 0; i < speech.values.size(); i++) {
    const double left = static_cast<double>(noisy.values[i]) - speech.values[i];
    rest += left * left;
  }
  const double smallest = 1e-7;
  return std::min(high, std::max(low, 10 * std::log10((product(speech.values, speech.values) + smallest) / (rest + smallest))));
}

Tensor blended(float share, const Tensor& of, const Tensor& rest) {
  same_size(of, rest, "blend");
  Tensor made = of;
  for (size_t i = 0; i < made.values.size(); i++) made.values[i] = share * of.values[i] + (1.0f - share) * rest.values[i];
  return made;
}

Tensor normalized(const Tensor& wave, double eps) {
  const double n = static_cast<double>(wave.values.size());
  double sum = 0, squares = 0;
  for (const float value : wave.values) sum += value;
  const double mean = sum / n;
  for (const float value : wave.values) squares += (value - mean) * (value - mean);
  const double scale = 1 / std::sqrt(squares / n + eps);
  Tensor made = wave;
  for (float& value : made.values) value = static_cast<float>((value - mean) * scale);
  return made;
}

Tensor compute(const HostStep& step, const Tensors& tensors) {
  const auto read = [&](size_t i) -> const Tensor& { return need(tensors, step.reads[i], step.what); };
  const std::vector<double>& number = step.numbers;
  if (step.what == "stft") return spectrum_of(step.sizes, read(0));
  if (step.what == "masked_istft") return wave_of(step.sizes, read(0), read(1), step.mask, step.samples);
  if (step.what == "match") return matched(read(0), read(1));
  if (step.what == "snr") return {{}, {static_cast<float>(estimate_db(read(0), read(1), number[0], number[1]))}};
  if (step.what == "blend") return blended(scalar(read(0), step.what), read(1), read(2));
  if (step.what == "normalize") return normalized(read(0), number[0]);
  const double snr_db = scalar(read(0), step.what), at_knee = number[0], knee_db = number[1], full_db = number[2], floor = number[3];  // alpha
  return {{}, {static_cast<float>(std::min(1.0, std::max(floor, at_knee + (1 - at_knee) * (snr_db - knee_db) / (full_db - knee_db))))}};
}

// Every step of the host that can run now and has not.
void run_host(std::vector<const HostStep*>* waiting, Tensors* tensors) {
  for (auto step = waiting->begin(); step != waiting->end();) {
    const std::vector<std::string>& reads = (*step)->reads;
    if (std::all_of(reads.begin(), reads.end(), [&](const std::string& name) { return tensors->count(name) > 0; })) {
      (*tensors)[(*step)->to] = compute(**step, *tensors);
      step = waiting->erase(step);
    } else {
      ++step;
    }
  }
}

// Statements of the host besides the transforms: {name: (tensors that it reads, numbers behind the tensor that it gives)}.
const std::map<std::string, std::pair<size_t, size_t>> kArithmetic = {{"match", {2, 0}}, {"snr", {2, 2}}, {"alpha", {1, 4}}, {"blend", {3, 0}}, {"normalize", {1, 1}}};

HostStep read_host(const std::vector<std::string>& f, const std::string& here) {
  const size_t reads = kArithmetic.at(f[0]).first;
  HostStep step;
  step.what = f[0];
  step.reads.assign(f.begin() + 1, f.begin() + 1 + static_cast<long>(reads));
  step.to = f[1 + reads];
  for (size_t i = 2 + reads; i < f.size(); i++) step.numbers.push_back(read_number(f[i], here));
  if (step.what == "alpha" && step.numbers[1] == step.numbers[2]) throw Stop(kUsage, here + "`alpha` rises from one SNR to the same");
  return step;
}

}  // namespace

Flow read_flow(const std::string& text, const std::string& where) {
  Flow flow;
  for (const Line& line : read_lines(text, where, true)) {
    const std::string here = where + ":" + std::to_string(line.number) + ": ";
    const std::vector<std::string>& f = line.fields;
    const std::string& what = f[0];
    std::map<std::string, size_t> known = {{"input", 3}, {"stft", 8},  {"step", 2},  {"feed", 3},          {"each", 3},
                                           {"stack", 3}, {"give", 3}, {"state", 4}, {"masked_istft", 11}, {"output", 2}};
    for (const auto& one : kArithmetic) known[one.first] = 2 + one.second.first + one.second.second;
    const auto found = known.find(what);
    if (found == known.end()) throw Stop(kUsage, here + "unknown statement `" + what.substr(0, 40) + "`");
    if (f.size() != found->second) throw Stop(kUsage, here + "`" + what + "` has " + std::to_string(f.size() - 1) + " fields, expected " + std::to_string(found->second - 1));
    const bool belongs_to_step = what == "feed" || what == "each" || what == "stack" || what == "give" || what == "state";
    if (belongs_to_step && flow.steps.empty()) throw Stop(kUsage, here + "`" + what + "` stands before any `step`");
    if (what == "input") {
      flow.inputs.push_back({need_file_name(f[1], here), read_shape(f[2], here)});
    } else if (what == "output") {
      flow.outputs.push_back(need_file_name(f[1], here));
    } else if (what == "step") {
      flow.steps.push_back({need_file_name(f[1], here), {}, {}, {}, {}, {}});
    } else if (what == "stft") {
      flow.host.push_back({what, {f[1]}, f[2], {}, read_sizes(f, 3, here), 0, 0});
    } else if (what == "masked_istft") {
      if (f[9] != "E" && f[9] != "C" && f[9] != "R") throw Stop(kUsage, here + "mask `" + f[9] + "`, expected E, C or R");
      flow.host.push_back({what, {f[1], f[2]}, f[3], {}, read_sizes(f, 4, here), f[9][0], read_integer(f[10], 1, kMost, here)});
    } else if (kArithmetic.count(what) > 0) {
      flow.host.push_back(read_host(f, here));
    } else if (what == "state") {
      flow.steps.back().states.push_back({f[1], f[2], static_cast<float>(read_number(f[3], here))});
    } else {
      Step& step = flow.steps.back();
      (what == "feed" ? step.feed : what == "each" ? step.each : what == "stack" ? step.stack : step.give).push_back({f[1], f[2]});
    }
  }
  if (flow.steps.empty() || flow.outputs.empty()) throw Stop(kUsage, where + ": no step, or no output");
  return flow;
}

Tensors run_flow(const Flow& flow, const Engines& engines, const Tensors& inputs, const Run& run) {
  Tensors tensors;
  for (const Port& port : flow.inputs) {
    const Tensor& given = need(inputs, port.name, "flow inputs");
    if (given.shape != port.shape) throw Stop(kUsage, "flow input `" + port.name + "` has shape " + to_text(given.shape) + ", expected " + to_text(port.shape));
    tensors[port.name] = given;
  }
  std::vector<const HostStep*> waiting;
  for (const HostStep& step : flow.host) waiting.push_back(&step);
  for (const Step& step : flow.steps) {
    run_host(&waiting, &tensors);
    const auto engine = engines.find(step.engine);
    if (engine == engines.end()) throw Stop(kUsage, "flow: there is no engine `" + step.engine + "`");
    run_step(step, *engine->second, run, &tensors);
  }
  run_host(&waiting, &tensors);
  for (const HostStep* step : waiting) compute(*step, tensors);  // says which tensor is not there
  Tensors made;
  for (const std::string& name : flow.outputs) made[name] = need(tensors, name, "flow outputs");
  return made;
}

}  // namespace ek
