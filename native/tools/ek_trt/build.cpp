#include "build.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>

#include "device.h"
#include "files.h"
#include "json.h"
#include "lists.h"
#include "log.h"
#include "shell.h"
#include "stop.h"

namespace ek {
namespace {

using Precisions = std::vector<std::pair<std::string, std::string>>;

#if NV_TENSORRT_MAJOR < 10
// Gives TensorRT our scales and nothing else: a builder that asks for a batch would make up scales of its own.
class CacheOnly : public nvinfer1::IInt8EntropyCalibrator2 {
 public:
  explicit CacheOnly(const std::string& cache) : cache_(cache) {}
  int32_t getBatchSize() const noexcept override { return 1; }
  bool getBatch(void*[], const char*[], int32_t) noexcept override {
    was_asked_for_data_ = true;
    return false;
  }
  const void* readCalibrationCache(size_t& length) noexcept override {
    was_read_ = true;
    length = cache_.size();
    return cache_.data();
  }
  void writeCalibrationCache(const void*, size_t) noexcept override {}

  bool was_read() const { return was_read_; }
  bool was_asked_for_data() const { return was_asked_for_data_; }

 private:
  std::string cache_;
  bool was_read_ = false, was_asked_for_data_ = false;
};
#endif

// What is asked for, read and checked before TensorRT starts.
struct Request {
  Precisions precisions;
  std::vector<std::string> int8_tensors;
  std::string cache, timing_cache;
};

Request read_request(const BuildJob& job) {
  Request made;
  if (!is_file(job.onnx)) throw Stop(kDamaged, job.onnx + ": missing");
  if (!job.precisions.empty()) made.precisions = read_precisions(read_file(job.precisions), job.precisions);
  if (!job.int8_tensors.empty()) made.int8_tensors = read_names(read_file(job.int8_tensors), job.int8_tensors);
  if (!job.cache.empty()) {
    made.cache = read_file(job.cache);
    check_cache(made.cache, NV_TENSORRT_VERSION, job.cache);
  }
  if (!job.timing_cache.empty() && is_file(job.timing_cache)) made.timing_cache = read_file(job.timing_cache);
  return made;
}

// What is alive during a build. Destroyed from the last to the first; the parser owns the weights that the network points to.
struct Workshop {
  std::unique_ptr<nvinfer1::IBuilder> builder;
  std::unique_ptr<nvinfer1::INetworkDefinition> network;
  std::unique_ptr<nvonnxparser::IParser> parser;
  std::unique_ptr<nvinfer1::ITimingCache> timing_cache;
  std::unique_ptr<nvinfer1::IBuilderConfig> config;
};

template <class Thing>
void need(const std::unique_ptr<Thing>& thing, const char* what) {
  if (!thing) throw Stop(kMissing, std::string("TensorRT's ") + what + " does not start: " + the_log().last_error());
}

void parse(const BuildJob& job, Workshop* shop) {
  shop->builder.reset(nvinfer1::createInferBuilder(the_log()));
  need(shop->builder, "builder");
  shop->network.reset(create_network(*shop->builder, job.strongly_typed));
  need(shop->network, "network");
  shop->parser.reset(nvonnxparser::createParser(*shop->network, the_log()));
  need(shop->parser, "ONNX parser");
  const bool is_parsed = shop->parser->parseFromFile(job.onnx.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kWARNING));
  if (is_parsed && shop->parser->getNbErrors() == 0) return;
  const nvonnxparser::IParserError* error = shop->parser->getNbErrors() > 0 ? shop->parser->getError(0) : nullptr;
  throw Stop(kNotAsAsked, job.onnx + ": the parser refuses it: " + (error ? "node " + std::to_string(error->node()) + ": " + error->desc() : the_log().last_error()));
}

// Files hold float32 in C order; the engine shall take just that.
void check_tensors(nvinfer1::INetworkDefinition& network, const std::string& onnx) {
  for (int side = 0; side < 2; side++) {
    const int count = side == 0 ? network.getNbInputs() : network.getNbOutputs();
    for (int i = 0; i < count; i++) {
      nvinfer1::ITensor* tensor = side == 0 ? network.getInput(i) : network.getOutput(i);
      const std::string here = onnx + ": tensor `" + tensor->getName() + "`";
      if (tensor->getType() != nvinfer1::DataType::kFLOAT) throw Stop(kNotAsAsked, here + " is not float32");
      const nvinfer1::Dims dims = tensor->getDimensions();
      for (int d = 0; d < dims.nbDims; d++) {
        if (dims.d[d] < 1) throw Stop(kNotAsAsked, here + " has no fixed shape");
      }
      tensor->setAllowedFormats(1U << static_cast<uint32_t>(nvinfer1::TensorFormat::kLINEAR));
    }
  }
}

void set_precisions(nvinfer1::INetworkDefinition& network, const Precisions& precisions, const std::string& where) {
  std::map<std::string, std::string> wanted(precisions.begin(), precisions.end());
  for (int i = 0; i < network.getNbLayers(); i++) {
    const auto found = wanted.find(network.getLayer(i)->getName());
    if (found == wanted.end()) continue;
    set_precision(*network.getLayer(i), found->second);
    wanted.erase(found);
  }
  if (!wanted.empty()) {
    throw Stop(kNotAsAsked, where + ": the network has no layer `" + wanted.begin()->first + "`" + (wanted.size() > 1 ? ", nor " + std::to_string(wanted.size() - 1) + " others" : ""));
  }
}

// A scale finds its tensor by name. One that the network has not got would be lost without a word.
void check_names(nvinfer1::INetworkDefinition& network, const std::vector<std::string>& tensors, const std::string& where) {
  std::set<std::string> known;
  for (int i = 0; i < network.getNbInputs(); i++) known.insert(network.getInput(i)->getName());
  for (int i = 0; i < network.getNbLayers(); i++) {
    nvinfer1::ILayer* layer = network.getLayer(i);
    for (int o = 0; o < layer->getNbOutputs(); o++) {
      if (layer->getOutput(o)) known.insert(layer->getOutput(o)->getName());
    }
  }
  for (const std::string& tensor : tensors) {
    if (!known.count(tensor)) throw Stop(kNotAsAsked, where + ": the network has no tensor `" + tensor + "`, so its scale would be lost");
  }
}

// Returns {"core", "layers", "elsewhere": [layers that DLA does not take]}, or null.
Json use_dla(const BuildJob& job, Workshop* shop) {
  if (job.dla_core < 0) return Json();
  const int cores = shop->builder->getNbDLACores();
  if (job.dla_core >= cores) throw Stop(kMissing, "DLA core " + std::to_string(job.dla_core) + ": this device has " + std::to_string(cores));
  nvinfer1::IBuilderConfig& config = *shop->config;
  config.setDefaultDeviceType(nvinfer1::DeviceType::kDLA);
  config.setDLACore(job.dla_core);
  if (job.gpu_fallback) config.setFlag(nvinfer1::BuilderFlag::kGPU_FALLBACK);
  Json elsewhere = Json::array();
  int there = 0;
  for (int i = 0; i < shop->network->getNbLayers(); i++) {
    const nvinfer1::ILayer* layer = shop->network->getLayer(i);
    if (config.canRunOnDLA(layer)) {
      there++;
    } else {
      elsewhere.add(layer->getName());  // without --gpu-fallback the builder refuses it, or folds it away
    }
  }
  Json made = Json::object();
  made.set("core", job.dla_core);
  made.set("layers", there);
  made.set("elsewhere", elsewhere);
  return made;
}

// "new", "used", or "replaced" where the old one is of another device or version; null without one.
Json use_timing_cache(const BuildJob& job, const std::string& old, Workshop* shop) {
  if (job.timing_cache.empty()) return Json();
  nvinfer1::IBuilderConfig& config = *shop->config;
  for (const std::string& text : {old, std::string()}) {
    shop->timing_cache.reset(config.createTimingCache(text.data(), text.size()));
    if (shop->timing_cache && config.setTimingCache(*shop->timing_cache, false)) return Json(old.empty() ? "new" : text.empty() ? "replaced" : "used");
  }
  throw Stop(kNotAsAsked, job.timing_cache + ": TensorRT takes no timing cache: " + the_log().last_error());
}

// What TensorRT says in its log when it does not use the cache as it stands (libnvinfer 8.5.2's own words).
void check_warnings(const Log& log) {
  if (log.is_incomplete()) throw Stop(kBug, "no memory was left for TensorRT's warnings, so they could not be checked");
  for (const char* phrase :
       {"Could not parse the following line from the calibration cache", "Calibration table does not match", "Calibrator is not being used", "Calibrator won't be used"}) {
    for (const std::vector<std::string>* list : {&log.warnings(), &log.errors()}) {
      for (const std::string& message : *list) {
        if (message.find(phrase) != std::string::npos) throw Stop(kNotAsAsked, "the calibration cache is not used as it stands: " + message);
      }
    }
  }
}

// Tensors that TensorRT misses a scale for. Around one of ours, layers would go back to float.
std::vector<std::string> without_scale(const Log& log, const std::vector<std::string>& int8_tensors) {
  const std::set<std::string> ours(int8_tensors.begin(), int8_tensors.end());
  const std::string before = "for tensor ", after = ", expect";
  std::vector<std::string> made;
  for (const std::string& message : log.warnings()) {
    if (message.find("Missing scale") == std::string::npos) continue;
    const size_t start = message.find(before), end = message.rfind(after);
    if (start == std::string::npos || end == std::string::npos || end < start + before.size()) throw Stop(kNotAsAsked, "cannot read which tensor has no scale: " + message);
    const std::string tensor = message.substr(start + before.size(), end - start - before.size());
    if (ours.count(tensor)) throw Stop(kNotAsAsked, "TensorRT has no scale for `" + tensor + "`, which an int8 layer uses");
    made.push_back(tensor);
  }
  return made;
}

std::unique_ptr<nvinfer1::IHostMemory> build(const Request& request, const BuildJob& job, Workshop* shop) {
  std::unique_ptr<nvinfer1::IHostMemory> plan;
#if NV_TENSORRT_MAJOR < 10
  CacheOnly calibrator(request.cache);
  if (!job.cache.empty()) shop->config->setInt8Calibrator(&calibrator);
  plan.reset(shop->builder->buildSerializedNetwork(*shop->network, *shop->config));
  shop->config->setInt8Calibrator(nullptr);
  if (calibrator.was_asked_for_data()) throw Stop(kNotAsAsked, job.cache + ": TensorRT asked for data to calibrate with instead of taking the cache");
  if (plan && !job.cache.empty() && !calibrator.was_read()) throw Stop(kNotAsAsked, job.cache + ": TensorRT built without reading it");
#else
  (void)request;
  plan.reset(shop->builder->buildSerializedNetwork(*shop->network, *shop->config));
#endif
  if (!plan || plan->size() == 0) throw Stop(kNotAsAsked, job.onnx + ": no engine was built: " + the_log().last_error());
  return plan;
}

// The engine's own account of its layers; that it loads is seen on the way.
std::string describe_layers(const nvinfer1::IHostMemory& plan) {
  std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(the_log()));
  need(runtime, "runtime");
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine) throw Stop(kNotAsAsked, "the engine that was just built does not load: " + the_log().last_error());
  std::unique_ptr<nvinfer1::IEngineInspector> inspector(engine->createEngineInspector());
  const char* text = inspector ? inspector->getEngineInformation(nvinfer1::LayerInformationFormat::kJSON) : nullptr;
  if (!text || !*text) throw Stop(kNotAsAsked, "TensorRT says nothing of the engine's layers: " + the_log().last_error());
  return std::string(text) + "\n";
}

Json flags_of(const BuildJob& job) {
  Json flags = Json::array();
  if (job.fp16) flags.add("fp16");
  if (job.int8) flags.add("int8");
  if (job.tf32) flags.add("tf32");
  if (job.own_kernels) flags.add("own_kernels");
  if (job.strongly_typed || kIsStronglyTyped) flags.add("strongly_typed");
  if (job.gpu_fallback) flags.add("gpu_fallback");
  return flags;
}

Json count_precisions(const Precisions& precisions) {
  Json made = Json::object();
  for (const char* type : {"int8", "fp16", "fp32"}) {
    int count = 0;
    for (const auto& entry : precisions) count += entry.second == type;
    made.set(type, count);
  }
  return made;
}

}  // namespace

std::string problem_of(const BuildJob& job) {
  const std::string here = " on TensorRT " + built_for();
  const bool has_types = job.fp16 || job.int8 || !job.precisions.empty();
  if (job.cache.empty() != job.int8_tensors.empty()) return "--cache and --int8-tensors belong together";
  if (!job.cache.empty() && !kHasCalibrator) return "--cache" + here + ": the network's own Q/DQ nodes hold the scales";
  if (!job.cache.empty() && !job.int8) return "--cache needs --int8";
  if (job.int8 && kHasCalibrator && job.cache.empty()) return "--int8" + here + " needs --cache and --int8-tensors";
  if (job.strongly_typed && !kCanBeStronglyTyped) return "--strongly-typed" + here + " does not exist";
  if (kIsStronglyTyped && has_types) return "--fp16, --int8 and --precisions" + here + ": the network's own types are used";
  if (job.strongly_typed && has_types) return "--strongly-typed takes the network's own types: no --fp16, --int8 or --precisions";
  if (job.gpu_fallback && job.dla_core < 0) return "--gpu-fallback needs --dla";
  return "";
}

void build_engine(const BuildJob& job) {
  for (const std::string& old : {job.engine, job.layers, job.report}) forget_file(old);
  const Request request = read_request(job);
  const Json device = need_device();
  const auto begin = std::chrono::steady_clock::now();

  Workshop shop;
  parse(job, &shop);
  check_tensors(*shop.network, job.onnx);
  check_names(*shop.network, request.int8_tensors, job.int8_tensors);
  set_precisions(*shop.network, request.precisions, job.precisions);

  shop.config.reset(shop.builder->createBuilderConfig());
  need(shop.config, "builder configuration");
  nvinfer1::IBuilderConfig& config = *shop.config;
  allow_types(config, job.fp16, job.int8, !request.precisions.empty());
  if (job.own_kernels && !use_own_kernels(config)) throw Stop(kNotAsAsked, "TensorRT does not go without cuBLAS and cuDNN: " + the_log().last_error());
  if (!job.tf32) config.clearFlag(nvinfer1::BuilderFlag::kTF32);
  if (job.workspace_mib) config.setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, static_cast<size_t>(job.workspace_mib) << 20);
  config.setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
  const Json dla = use_dla(job, &shop);
  const Json timing_cache = use_timing_cache(job, request.timing_cache, &shop);

  const std::unique_ptr<nvinfer1::IHostMemory> plan = build(request, job, &shop);
  const Log& log = the_log();
  check_warnings(log);
  const std::vector<std::string> missing = without_scale(log, request.int8_tensors);
  const std::string layers = describe_layers(*plan);

  Json report = device;
  report.set("build_seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  report.set("engine_bytes", static_cast<uint64_t>(plan->size()));
  report.set("network_layers", shop.network->getNbLayers());
  report.set("precisions", count_precisions(request.precisions));
  report.set("flags", flags_of(job));
  report.set("workspace_mib", job.workspace_mib ? Json(static_cast<int64_t>(job.workspace_mib)) : Json());
  report.set("calibration_cache", job.cache.empty() ? Json() : Json("read"));
  report.set("without_scale", Json::list(missing));
  report.set("timing_cache", timing_cache);
  report.set("dla", dla);
  report.set("warnings", Json::list(log.warnings()));

  write_file(job.layers, layers);
  if (!job.timing_cache.empty()) {
    const std::unique_ptr<nvinfer1::IHostMemory> bytes(config.getTimingCache() ? config.getTimingCache()->serialize() : nullptr);
    if (!bytes) throw Stop(kNotAsAsked, job.timing_cache + ": TensorRT gives no timing cache back");
    write_file(job.timing_cache, bytes->data(), bytes->size());
  }
  write_file(job.report, report.dump() + "\n");
  write_file(job.engine, plan->data(), plan->size());  // last: where the engine is, the rest is
}

}  // namespace ek
