#include "engine.h"

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <chrono>

#include "device.h"
#include "files.h"
#include "log.h"
#include "shell.h"
#include "stop.h"

namespace ek {
namespace {

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;

DeviceMemory allocate(size_t bytes) {
  void* memory = nullptr;
  cuda(cudaMalloc(&memory, bytes), std::to_string(bytes) + " bytes of device memory");
  return DeviceMemory(memory);
}

struct Stream {
  Stream() { cuda(cudaStreamCreate(&handle), "CUDA stream"); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

struct Event {
  Event() { cuda(cudaEventCreate(&handle), "CUDA event"); }
  ~Event() { cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t handle = nullptr;
};

}  // namespace

// Members are destroyed from the last to the first: the context before the engine, the engine before the runtime.
struct Engine::Inside {
  std::string path;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Event> start, stop;
  std::vector<Port> inputs, outputs;
  std::map<std::string, DeviceMemory> memory;
  double load_ms = 0, device_ms = 0;
  int64_t engine_bytes = 0, memory_drop = 0;

  void load(int dla_core);
  void add_port(const char* name);
};

void Engine::Inside::load(int dla_core) {
  const auto begin = std::chrono::steady_clock::now();
  const int64_t free_before = free_memory();
  const std::string plan = read_file(path);
  engine_bytes = static_cast<int64_t>(plan.size());
  runtime.reset(nvinfer1::createInferRuntime(the_log()));
  if (!runtime) throw Stop(kMissing, "TensorRT's runtime does not start: " + the_log().last_error());
  if (dla_core >= 0) {
    if (dla_core >= runtime->getNbDLACores()) throw Stop(kMissing, "DLA core " + std::to_string(dla_core) + ": there are " + std::to_string(runtime->getNbDLACores()));
    runtime->setDLACore(dla_core);
  }
  engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine) throw Stop(kDamaged, path + ": not an engine of this TensorRT and device: " + the_log().last_error());
  for (int i = 0; i < engine->getNbIOTensors(); i++) add_port(engine->getIOTensorName(i));
  context.reset(engine->createExecutionContext());
  if (!context) throw Stop(kMissing, path + ": no execution context: " + the_log().last_error());
  stream.reset(new Stream);
  start.reset(new Event);
  stop.reset(new Event);
  for (const std::vector<Port>* ports : {&inputs, &outputs}) {
    for (const Port& port : *ports) {
      DeviceMemory& buffer = memory[port.name] = allocate(static_cast<size_t>(count_of(port.shape)) * sizeof(float));
      if (!context->setTensorAddress(port.name.c_str(), buffer.get())) throw Stop(kNotAsAsked, path + ": `" + port.name + "` takes no memory: " + the_log().last_error());
    }
  }
  memory_drop = free_before - free_memory();
  load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

void Engine::Inside::add_port(const char* name) {
  const std::string here = path + ": tensor `" + name + "`";
  if (!is_file_name(name)) throw Stop(kNotAsAsked, here + " cannot be a file's name");
  if (engine->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) throw Stop(kNotAsAsked, here + " is not float32");
  if (engine->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR) throw Stop(kNotAsAsked, here + " is not in linear format");
  const nvinfer1::Dims dims = engine->getTensorShape(name);
  Port port{name, {}};
  for (int i = 0; i < dims.nbDims; i++) {
    if (dims.d[i] < 1) throw Stop(kNotAsAsked, here + " has no fixed shape");
    port.shape.push_back(dims.d[i]);
  }
  const bool is_input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
  (is_input ? inputs : outputs).push_back(port);
}

Engine::Engine(const std::string& path, int dla_core) : inside_(new Inside) {
  inside_->path = path;
  inside_->load(dla_core);
}
Engine::~Engine() = default;

const std::vector<Port>& Engine::inputs() const { return inside_->inputs; }
const std::vector<Port>& Engine::outputs() const { return inside_->outputs; }
double Engine::device_ms() const { return inside_->device_ms; }
double Engine::load_ms() const { return inside_->load_ms; }
int64_t Engine::engine_bytes() const { return inside_->engine_bytes; }
int64_t Engine::memory_drop() const { return inside_->memory_drop; }
int64_t Engine::activation_bytes() const { return activation_bytes_of(*inside_->engine); }

void Engine::run(const Feeds& feeds, Outputs* outputs) {
  Inside& in = *inside_;
  if (feeds.size() != in.inputs.size()) throw Stop(kUsage, in.path + ": " + std::to_string(feeds.size()) + " inputs given, " + std::to_string(in.inputs.size()) + " are needed");
  const cudaStream_t stream = in.stream->handle;
  for (const Port& port : in.inputs) {
    const auto feed = feeds.find(port.name);
    if (feed == feeds.end()) throw Stop(kUsage, in.path + ": input `" + port.name + "` is missing");
    if (feed->second.shape != port.shape) throw Stop(kUsage, in.path + ": input `" + port.name + "` has shape " + to_text(feed->second.shape) + ", expected " + to_text(port.shape));
    cuda(cudaMemcpyAsync(in.memory[port.name].get(), feed->second.values, static_cast<size_t>(count_of(port.shape)) * sizeof(float), cudaMemcpyHostToDevice, stream), "copy to the device", kNotAsAsked);
  }
  cuda(cudaEventRecord(in.start->handle, stream), "CUDA event", kNotAsAsked);
  if (!in.context->enqueueV3(stream)) throw Stop(kNotAsAsked, in.path + ": does not run: " + the_log().last_error());
  cuda(cudaEventRecord(in.stop->handle, stream), "CUDA event", kNotAsAsked);
  for (const Port& port : in.outputs) {
    Tensor& made = (*outputs)[port.name];
    made.shape = port.shape;
    made.values.resize(static_cast<size_t>(count_of(port.shape)));
    cuda(cudaMemcpyAsync(made.values.data(), in.memory[port.name].get(), made.values.size() * sizeof(float), cudaMemcpyDeviceToHost, stream), "copy from the device", kNotAsAsked);
  }
  cuda(cudaStreamSynchronize(stream), in.path + ": run", kNotAsAsked);
  float milliseconds = 0;
  cuda(cudaEventElapsedTime(&milliseconds, in.start->handle, in.stop->handle), "CUDA event", kNotAsAsked);
  in.device_ms = milliseconds;
}

}  // namespace ek
