// A stand-in for libnvinfer, libnvonnxparser and libcudart behind TensorRT's real headers: no GPU, and it does as its model file says.
// Linked to ek_trt in their place. unused.h, made from the same headers by tests/native/trt_standin.py, overrides every virtual function that
// is not used here with one that ends the program, so that what ek_trt calls is known to be just this.
//
// A model:  standin                        first line
//           input  NAME 1,3                and output NAME 1,2: the engine's tensors
//           layer  NAME TENSOR             a layer with one output
//           integer NAME | dynamic NAME    that input or output is of another kind
//           refuse TEXT                    the parser does
//           fail TEXT                      the builder logs an error and gives null
//           ask_for_data | ignore_cache | complain TEXT | no_reload | no_layers | sleep
//           gpu_only NAME                  that layer cannot run on DLA
//           milliseconds 5,3,9             what CUDA's events measure, in turn
// An engine is the model again, and what the builder was told. Its outputs are toy_engine.cpp's, with salts 0, 0.1, ...
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include "unused.h"

using namespace nvinfer1;

namespace {

ILogger* logger = nullptr;
void say(ILogger::Severity severity, const std::string& text) { logger->log(severity, text.c_str()); }

using Words = std::vector<std::string>;
std::vector<Words> lines_of(const std::string& text) {
  std::vector<Words> lines;
  std::istringstream all(text);
  for (std::string line; std::getline(all, line);) {
    std::istringstream words(line);
    lines.emplace_back(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>());
    if (lines.back().empty()) lines.pop_back();
  }
  return lines;
}

struct Model {
  std::string text;
  std::vector<Words> lines;

  explicit Model(const std::string& text) : text(text), lines(lines_of(text)) {}
  bool is_ok(const char* first) const { return !lines.empty() && lines[0][0] == first; }
  std::vector<Words> all(const std::string& kind) const {
    std::vector<Words> found;
    for (const Words& line : lines) {
      if (line[0] == kind) found.push_back(line);
    }
    return found;
  }
  bool has(const std::string& kind, const std::string& name = "") const {
    for (const Words& line : all(kind)) {
      if (name.empty() || (line.size() > 1 && line[1] == name)) return true;
    }
    return false;
  }
  std::string rest(const std::string& kind) const {
    const size_t at = text.find("\n" + kind + " ");
    return text.substr(at + kind.size() + 2, text.find('\n', at + 1) - at - kind.size() - 2);
  }
};

Dims dims_of(const std::string& text) {
  Dims dims{};
  std::istringstream numbers(text);
  for (std::string word; std::getline(numbers, word, ',');) dims.d[dims.nbDims++] = atoi(word.c_str());
  return dims;
}
size_t count_of(const Dims& dims) {
  size_t count = 1;
  for (int i = 0; i < dims.nbDims; i++) count *= static_cast<size_t>(dims.d[i]);
  return count;
}

// --------------------------------------------------------------------------- network

struct TensorImpl : apiv::UnusedVTensor {
  std::string name;
  Dims dims{};
  DataType type = DataType::kFLOAT;
  TensorFormats formats = 0;
  const char* getName() const noexcept override { return name.c_str(); }
  Dims getDimensions() const noexcept override { return dims; }
  DataType getType() const noexcept override { return type; }
  void setAllowedFormats(TensorFormats wanted) noexcept override { formats = wanted; }
};
struct Tensor : ITensor {
  TensorImpl impl;
  Tensor() { mImpl = &impl; }
};

struct LayerImpl : apiv::UnusedVLayer {
  std::string name, precision = "any";
  Tensor output;
  const char* getName() const noexcept override { return name.c_str(); }
  int32_t getNbOutputs() const noexcept override { return 1; }
  ITensor* getOutput(int32_t) const noexcept override { return const_cast<Tensor*>(&output); }
#if NV_TENSORRT_MAJOR < 11
  void setPrecision(DataType type) noexcept override { precision = type == DataType::kINT8 ? "int8" : type == DataType::kHALF ? "fp16" : "fp32"; }
#endif
};
struct Layer : ILayer {
  LayerImpl impl;
  Layer() { mLayer = &impl; }
};

struct NetworkImpl : apiv::UnusedVNetworkDefinition {
  std::unique_ptr<Model> model;
  NetworkDefinitionCreationFlags flags = 0;
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<std::unique_ptr<Tensor>> sides[2];

  void take(const std::string& text) {
    model.reset(new Model(text));
    for (int side = 0; side < 2; side++) {
      for (const Words& line : model->all(side ? "output" : "input")) {
        sides[side].emplace_back(new Tensor);
        TensorImpl& tensor = sides[side].back()->impl;
        tensor.name = line[1];
        tensor.dims = dims_of(line[2]);
        if (model->has("integer", line[1])) tensor.type = DataType::kINT32;
        if (model->has("dynamic", line[1])) tensor.dims.d[0] = -1;
      }
    }
    for (const Words& line : model->all("layer")) {
      layers.emplace_back(new Layer);
      layers.back()->impl.name = line[1];
      layers.back()->impl.output.impl.name = line[2];
    }
  }
  int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(sides[0].size()); }
  ITensor* getInput(int32_t i) const noexcept override { return sides[0][static_cast<size_t>(i)].get(); }
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(sides[1].size()); }
  ITensor* getOutput(int32_t i) const noexcept override { return sides[1][static_cast<size_t>(i)].get(); }
  int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(layers.size()); }
  ILayer* getLayer(int32_t i) const noexcept override { return layers[static_cast<size_t>(i)].get(); }
};
struct Network : INetworkDefinition {
  NetworkImpl impl;
  Network() { mImpl = &impl; }
};

struct ParserError : nvonnxparser::UnusedIParserError {
  std::string text;
#if NV_TENSORRT_MAJOR < 10
  const char* desc() const override { return text.c_str(); }
  int node() const override { return 7; }
#else
  const char* desc() const noexcept override { return text.c_str(); }
  int node() const noexcept override { return 7; }
#endif
};

#if NV_TENSORRT_MAJOR < 10
#define MAYBE_NOEXCEPT
#else
#define MAYBE_NOEXCEPT noexcept
#endif
struct Parser : nvonnxparser::UnusedIParser {
  Network* network = nullptr;
  ParserError error;
  bool parseFromFile(const char* path, int) MAYBE_NOEXCEPT override {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    network->impl.take(text.str());
    const Model& model = *network->impl.model;
    if (!model.is_ok("standin")) error.text = "no model of the stand-in";
    if (model.has("refuse")) error.text = model.rest("refuse");
    return error.text.empty();
  }
  int getNbErrors() const MAYBE_NOEXCEPT override { return error.text.empty() ? 0 : 1; }
  const nvonnxparser::IParserError* getError(int) const MAYBE_NOEXCEPT override { return &error; }
};

// --------------------------------------------------------------------------- builder

struct MemoryImpl : apiv::UnusedVHostMemory {
  std::string bytes;
  void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
  std::size_t size() const noexcept override { return bytes.size(); }
};
struct Memory : IHostMemory {
  MemoryImpl impl;
  explicit Memory(const std::string& bytes) {
    impl.bytes = bytes;
    mImpl = &impl;
  }
};

struct TimingImpl : apiv::UnusedVTimingCache {
  std::string bytes;
  IHostMemory* serialize() const noexcept override { return new Memory("timing of this device\n"); }
};
struct Timing : ITimingCache {
  TimingImpl impl;
  Timing() { mImpl = &impl; }
};

struct ConfigImpl : apiv::UnusedVBuilderConfig {
  std::set<int> flags{static_cast<int>(BuilderFlag::kTF32)};
  size_t workspace = 0;
  int dla_core = -1;
  DeviceType device = DeviceType::kGPU;
  ProfilingVerbosity verbosity = ProfilingVerbosity::kLAYER_NAMES_ONLY;
  const ITimingCache* timing = nullptr;
  NetworkImpl* network = nullptr;
  TacticSources sources = 31;

  TacticSources getTacticSources() const noexcept override { return sources; }
  bool setTacticSources(TacticSources wanted) noexcept override {
    sources = wanted;
    return true;
  }
  bool is_set(BuilderFlag flag) const { return flags.count(static_cast<int>(flag)) > 0; }
  void setFlag(BuilderFlag flag) noexcept override { flags.insert(static_cast<int>(flag)); }
  void clearFlag(BuilderFlag flag) noexcept override { flags.erase(static_cast<int>(flag)); }
  void setMemoryPoolLimit(MemoryPoolType pool, std::size_t bytes) noexcept override {
    if (pool == MemoryPoolType::kWORKSPACE) workspace = bytes;
  }
  void setProfilingVerbosity(ProfilingVerbosity wanted) noexcept override { verbosity = wanted; }
  void setDefaultDeviceType(DeviceType wanted) noexcept override { device = wanted; }
  void setDLACore(int32_t core) noexcept override { dla_core = core; }
  bool canRunOnDLA(const ILayer* layer) const noexcept override { return !network->model->has("gpu_only", layer->getName()); }
  ITimingCache* createTimingCache(const void* bytes, std::size_t size) const noexcept override {
    Timing* made = new Timing;
    made->impl.bytes.assign(static_cast<const char*>(bytes), size);
    return made;
  }
  bool setTimingCache(const ITimingCache& cache, bool ignore_mismatch) noexcept override {
    const std::string& bytes = static_cast<const Timing&>(cache).impl.bytes;
    if (!bytes.empty() && bytes != "timing of this device\n" && !ignore_mismatch) return false;
    timing = &cache;
    return true;
  }
  const ITimingCache* getTimingCache() const noexcept override { return timing; }
#if NV_TENSORRT_MAJOR < 10
  IInt8Calibrator* calibrator = nullptr;
  void setInt8Calibrator(IInt8Calibrator* wanted) noexcept override { calibrator = wanted; }
#endif
};
struct Config : IBuilderConfig {
  ConfigImpl impl;
  Config() { mImpl = &impl; }
};

#if NV_TENSORRT_MAJOR < 10
// As TensorRT 8.5.2 does and says it.
void calibrate(const Model& model, const NetworkImpl& network, IInt8Calibrator* calibrator) {
  std::set<std::string> known;
  size_t length = 0;
  const char* bytes = model.has("ignore_cache") ? nullptr : static_cast<const char*>(calibrator->readCalibrationCache(length));
  const std::string cache(bytes ? bytes : "", bytes ? length : 0);
  if (calibrator->getAlgorithm() != CalibrationAlgoType::kENTROPY_CALIBRATION_2) say(ILogger::Severity::kERROR, "Calibration table does not match calibrator algorithm type.");
  for (const Words& line : lines_of(cache)) known.insert(line[0].substr(0, line[0].size() - 1));
  if (model.has("ask_for_data")) {
    say(ILogger::Severity::kINFO, "Starting Calibration.");
    void* bindings[1] = {nullptr};
    const char* names[1] = {"x"};
    if (calibrator->getBatchSize() > 0) calibrator->getBatch(bindings, names, 1);
  }
  if (model.has("ignore_cache")) return;
  std::vector<std::string> tensors;
  for (const auto& tensor : network.sides[0]) tensors.push_back(tensor->impl.name);
  for (const auto& layer : network.layers) tensors.push_back(layer->impl.output.impl.name);
  for (const std::string& tensor : tensors) {
    if (known.count(tensor)) continue;
    say(ILogger::Severity::kWARNING, "Missing scale and zero-point for tensor " + tensor + ", expect fall back to non-int8 implementation for any layer consuming or producing given tensor");
  }
}
#endif

struct BuilderImpl : apiv::UnusedVBuilder {
  Network* network = nullptr;
  int32_t getNbDLACores() const noexcept override { return 2; }
  IBuilderConfig* createBuilderConfig() noexcept override {
    Config* made = new Config;
    made->impl.network = &network->impl;
    return made;
  }
  INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override {
    network = new Network;
    network->impl.flags = flags;
    return network;
  }
  IHostMemory* buildSerializedNetwork(INetworkDefinition& definition, IBuilderConfig& configuration) noexcept override {
    const NetworkImpl& net = static_cast<Network&>(definition).impl;
    const ConfigImpl& config = static_cast<Config&>(configuration).impl;
    const Model& model = *net.model;
    if (model.has("sleep")) sleep(30);
    if (model.has("complain")) say(ILogger::Severity::kWARNING, model.rest("complain"));
    std::string plan = "plan" + model.text.substr(std::string("standin").size());
    for (const auto& layer : net.layers) plan += "built " + layer->impl.name + " " + layer->impl.precision + "\n";
    for (int side = 0; side < 2; side++) {
      for (const auto& tensor : net.sides[side]) plan += "formats " + tensor->impl.name + " " + std::to_string(tensor->impl.formats) + "\n";
    }
    std::string flags;
#if NV_TENSORRT_MAJOR < 11
    if (config.is_set(BuilderFlag::kFP16)) flags += " fp16";
    if (config.is_set(BuilderFlag::kINT8)) flags += " int8";
    if (config.is_set(BuilderFlag::kOBEY_PRECISION_CONSTRAINTS)) flags += " obey";
#endif
    if (config.is_set(BuilderFlag::kTF32)) flags += " tf32";
    if (config.is_set(BuilderFlag::kGPU_FALLBACK)) flags += " gpu_fallback";
    if (config.verbosity == ProfilingVerbosity::kDETAILED) flags += " detailed";
    plan += "flags" + flags + "\nnetwork " + std::to_string(net.flags) + "\nworkspace " + std::to_string(config.workspace) + "\n";
    plan += "sources " + std::to_string(config.sources) + "\n";
    if (config.device == DeviceType::kDLA) plan += "dla " + std::to_string(config.dla_core) + "\n";
#if NV_TENSORRT_MAJOR < 10
    if (config.is_set(BuilderFlag::kINT8) && config.calibrator) calibrate(model, net, config.calibrator);
#endif
    for (const Words& line : model.all("gpu_only")) {
      if (config.device != DeviceType::kDLA || config.is_set(BuilderFlag::kGPU_FALLBACK)) continue;
      say(ILogger::Severity::kERROR, "Layer " + line[1] + " is not supported on DLA and GPU fallback is not enabled");
      return nullptr;
    }
    if (model.has("fail")) {
      say(ILogger::Severity::kERROR, model.rest("fail"));
      return nullptr;
    }
    return new Memory(plan);
  }
};
struct Builder : IBuilder {
  BuilderImpl impl;
  Builder() { mImpl = &impl; }
};

// --------------------------------------------------------------------------- engine

std::vector<float> milliseconds{1};  // of the engine that was loaded last
size_t runs = 0;

struct InspectorImpl : apiv::UnusedVEngineInspector {
  std::string text;
  const char* getEngineInformation(LayerInformationFormat format) const noexcept override { return format == LayerInformationFormat::kJSON && !text.empty() ? text.c_str() : nullptr; }
};
struct Inspector : IEngineInspector {
  InspectorImpl impl;
  Inspector() { mImpl = &impl; }
};

struct ContextImpl : apiv::UnusedVExecutionContext {
  const Model* model = nullptr;
  std::map<std::string, float*> addresses;
  bool setTensorAddress(const char* name, void* address) noexcept override {
    addresses[name] = static_cast<float*>(address);
    return true;
  }
  bool enqueueV3(cudaStream_t) noexcept override {
    double sum = 0;
    int number = 0;
    std::map<std::string, size_t> inputs;  // by name
    for (const Words& line : model->all("input")) inputs[line[1]] = ::count_of(dims_of(line[2]));
    for (const auto& input : inputs) {
      double mean = 0;
      for (size_t i = 0; i < input.second; i++) mean += static_cast<double>(addresses[input.first][i]) * static_cast<double>(1 + i % 7);
      sum += ++number * mean / static_cast<double>(input.second);
    }
    int salt = 0;
    for (const Words& line : model->all("output")) {
      float* values = addresses[line[1]];
      for (size_t j = 0; j < ::count_of(dims_of(line[2])); j++) values[j] = static_cast<float>(std::tanh(sum / 4 + static_cast<double>(j) / 100 + 0.1 * salt));
      salt++;
    }
    return true;
  }
};
struct Context : IExecutionContext {
  ContextImpl impl;
  Context() { mImpl = &impl; }
};

struct EngineImpl : apiv::UnusedVCudaEngine {
  std::unique_ptr<Model> model;
  std::vector<Words> tensors;
  const Words& find(const char* name) const {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const Words& line) { return line[1] == name; });
  }
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors.size()); }
  const char* getIOTensorName(int32_t i) const noexcept override { return tensors[static_cast<size_t>(i)][1].c_str(); }
  Dims getTensorShape(const char* name) const noexcept override {
    Dims dims = dims_of(find(name)[2]);
    if (model->has("dynamic", name)) dims.d[0] = -1;
    return dims;
  }
  DataType getTensorDataType(const char* name) const noexcept override { return model->has("integer", name) ? DataType::kINT32 : DataType::kFLOAT; }
  TensorFormat getTensorFormat(const char*) const noexcept override { return TensorFormat::kLINEAR; }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override { return find(name)[0] == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT; }
  IEngineInspector* createEngineInspector() const noexcept override {
    Inspector* made = new Inspector;
    std::string& text = made->impl.text;
    for (const Words& line : model->all("built")) text += std::string(text.empty() ? "" : ", ") + "{\"Name\": \"" + line[1] + "\", \"Precision\": \"" + line[2] + "\"}";
    text = model->has("no_layers") ? "" : "{\"Layers\": [" + text + "]}";
    return made;
  }
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
  int64_t getDeviceMemorySizeV2() const noexcept override { return 4321; }
#else
  size_t getDeviceMemorySize() const noexcept override { return 4321; }
#endif
#if NV_TENSORRT_MAJOR < 10
  IExecutionContext* createExecutionContext() noexcept override {
#else
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
#endif
    Context* made = new Context;
    made->impl.model = model.get();
    return made;
  }
};
struct Engine : ICudaEngine {
  EngineImpl impl;
  Engine() { mImpl = &impl; }
};

struct RuntimeImpl : apiv::UnusedVRuntime {
  int dla_core = -1;
  int32_t getNbDLACores() const noexcept override { return 2; }
  void setDLACore(int32_t core) noexcept override { dla_core = core; }
#if NV_TENSORRT_MAJOR < 10
  ICudaEngine* deserializeCudaEngine(const void* bytes, std::size_t size, IPluginFactory*) noexcept override {
#else
  ICudaEngine* deserializeCudaEngine(const void* bytes, std::size_t size) noexcept override {
#endif
    std::unique_ptr<Model> model(new Model(std::string(static_cast<const char*>(bytes), size)));
    if (!model->is_ok("plan") || model->has("no_reload")) {
      say(ILogger::Severity::kERROR, "Serialization assertion stdVersionRead == serializationVersion failed.");
      return nullptr;
    }
    Engine* made = new Engine;
    for (const char* kind : {"input", "output"}) {
      for (const Words& line : model->all(kind)) made->impl.tensors.push_back(line);
    }
    if (model->has("milliseconds")) {
      milliseconds.clear();
      runs = 0;
      std::istringstream numbers(model->rest("milliseconds"));
      for (std::string word; std::getline(numbers, word, ',');) milliseconds.push_back(static_cast<float>(atof(word.c_str())));
    }
    made->impl.model = std::move(model);
    return made;
  }
};
struct Runtime : IRuntime {
  RuntimeImpl impl;
  Runtime() { mImpl = &impl; }
};

long variable(const char* name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }

}  // namespace

// --------------------------------------------------------------------------- what the libraries export

extern "C" {

int32_t getInferLibVersion() noexcept { return static_cast<int32_t>(variable("STANDIN_VERSION", NV_TENSORRT_VERSION)); }

void* createInferBuilder_INTERNAL(void* given, int32_t) noexcept {
  logger = static_cast<ILogger*>(given);
  return variable("STANDIN_NO_BUILDER", 0) ? nullptr : static_cast<IBuilder*>(new Builder);
}
void* createInferRuntime_INTERNAL(void* given, int32_t) noexcept {
  logger = static_cast<ILogger*>(given);
  return static_cast<IRuntime*>(new Runtime);
}
void* createNvOnnxParser_INTERNAL(void* network, void*, int) MAYBE_NOEXCEPT {
  Parser* made = new Parser;
  made->network = static_cast<Network*>(static_cast<INetworkDefinition*>(network));
  return static_cast<nvonnxparser::IParser*>(made);
}

static size_t taken = 0;
cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(variable("STANDIN_DEVICES", 1));
  return *count < 0 ? cudaErrorInsufficientDriver : cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorInsufficientDriver ? "CUDA driver version is insufficient for CUDA runtime version" : "out of memory"; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 11040, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 12020, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* made, int) {
  memset(made, 0, sizeof *made);
  strcpy(made->name, "Stand-in");
  made->major = 7;
  made->minor = 2;
  made->totalGlobalMem = size_t(32) << 30;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = size_t(32) << 30;
  *free = *total - taken;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (bytes > size_t(1) << 30) return cudaErrorMemoryAllocation;
  *memory = malloc(bytes);
  taken += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return free(memory), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) { return memcpy(to, from, bytes), cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* made, cudaEvent_t, cudaEvent_t) { return *made = milliseconds[runs++ % milliseconds.size()], cudaSuccess; }

}  // extern "C"
