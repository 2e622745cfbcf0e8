// ek_trt's Engine without TensorRT: engines that compute something simple, for tests of everything around them with a C++ compiler alone.
// Linked in place of engine.cpp, device.cpp and build.cpp. tests/native/trt_toy.py computes the same in NumPy.
//
// A toy engine is a text file:
//     toy
//     input   NAME  1,3
//     output  NAME  1,2  SALT        output j is tanh(m / 4 + j / 100 + SALT), m the sum over the inputs by name, counted from 1,
//     milliseconds  5,3,9            of count * mean(x[i] * (1 + i % 7)); a run says that it took the next of these, in turn
#include <cmath>

#include "device.h"
#include "engine.h"
#include "files.h"
#include "lists.h"
#include "stop.h"

namespace ek {
namespace {

Shape read_shape(const std::string& text) {
  Shape shape;
  for (const std::string& word : split(text, ',')) shape.push_back(read_integer(word, 1, 1L << 30, "toy engine: "));
  return shape;
}

}  // namespace

struct Engine::Inside {
  std::vector<Port> inputs, outputs;
  std::vector<double> salts, milliseconds;
  int64_t bytes = 0;
  size_t runs = 0;
};

Engine::Engine(const std::string& path, int) : inside_(new Inside) {
  const std::string text = read_file(path);
  inside_->bytes = static_cast<int64_t>(text.size());
  const std::vector<Line> lines = read_lines(text, path);
  if (lines.empty() || lines[0].fields[0] != "toy") throw Stop(kDamaged, path + ": no toy engine");
  for (const Line& line : lines) {
    const std::vector<std::string>& f = line.fields;
    if (f[0] == "input") inside_->inputs.push_back({f.at(1), read_shape(f.at(2))});
    if (f[0] == "output") {
      inside_->outputs.push_back({f.at(1), read_shape(f.at(2))});
      inside_->salts.push_back(read_number(f.at(3), path));
    }
    if (f[0] != "milliseconds") continue;
    for (const std::string& word : split(f.at(1), ',')) inside_->milliseconds.push_back(read_number(word, path));
  }
}
Engine::~Engine() = default;

const std::vector<Port>& Engine::inputs() const { return inside_->inputs; }
const std::vector<Port>& Engine::outputs() const { return inside_->outputs; }
double Engine::load_ms() const { return 1; }
int64_t Engine::engine_bytes() const { return inside_->bytes; }
int64_t Engine::activation_bytes() const { return 1000; }
int64_t Engine::memory_drop() const { return 2000; }
double Engine::device_ms() const { return inside_->milliseconds.empty() ? 1 : inside_->milliseconds[(inside_->runs - 1) % inside_->milliseconds.size()]; }

void Engine::run(const Feeds& feeds, Outputs* outputs) {
  double sum = 0;
  int number = 0;
  if (feeds.size() != inside_->inputs.size()) throw Stop(kUsage, "toy engine: another number of inputs");
  for (const auto& feed : feeds) {  // by name
    const Port* port = nullptr;
    for (const Port& one : inside_->inputs) {
      if (one.name == feed.first) port = &one;
    }
    if (!port || port->shape != feed.second.shape) throw Stop(kUsage, "toy engine: input `" + feed.first + "` has shape " + to_text(feed.second.shape));
    double mean = 0;
    const int64_t count = count_of(port->shape);
    for (int64_t i = 0; i < count; i++) mean += static_cast<double>(feed.second.values[i]) * static_cast<double>(1 + i % 7);
    sum += ++number * mean / static_cast<double>(count);
  }
  for (size_t o = 0; o < inside_->outputs.size(); o++) {
    const Port& port = inside_->outputs[o];
    Tensor made{port.shape, std::vector<float>(static_cast<size_t>(count_of(port.shape)))};
    for (size_t j = 0; j < made.values.size(); j++) made.values[j] = static_cast<float>(std::tanh(sum / 4 + static_cast<double>(j) / 100 + inside_->salts[o]));
    (*outputs)[port.name] = std::move(made);
  }
  inside_->runs++;
}

Json describe_device() {
  Json made = Json::object();
  made.set("tensorrt", "0.0.0");
  made.set("device", "toy");
  return made;
}
Json need_device() { return describe_device(); }
int64_t free_memory() {
  static int64_t free = 1 << 20;
  return free -= 4096;
}

}  // namespace ek
