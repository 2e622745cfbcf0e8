// The C API of cuda.h: arenas on the device, graphs captured once, and every CUDA error turned into a status with a sentence.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/launch.h"
#include "cuda/load.h"
#include "cuda/plan.h"
#include "edgekit/cuda.h"
#include "stream/file.h"

namespace ek {
namespace cuda {
namespace {

ek_status status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return EK_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorNoKernelImageForDevice: return EK_UNSUPPORTED;
    default: return EK_CUDA_FAILED;
  }
}

ek_status failed(const char* what, cudaError_t error) {
  cudaGetLastError();  // clears what is not sticky, so that it is not taken for the next call's
  return fail(status_of(error), "CUDA: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

#define EK_TRY(call)                                        \
  do {                                                       \
    const cudaError_t error_ = (call);                       \
    if (error_ != cudaSuccess) return failed(#call, error_); \
  } while (0)

// The device of the engine for the length of a call; the caller's own afterwards.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && before_ != device) status_ = cudaSetDevice(device);
    changed_ = status_ == cudaSuccess && before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

}  // namespace
}  // namespace cuda
}  // namespace ek

using namespace ek;
using namespace ek::cuda;

struct ek_cuda_engine {
  int device = 0;
  int32_t precision = EK_CUDA_FP32, io = EK_CUDA_IO_HOST;
  Plan plan;
  cudaStream_t stream = nullptr;
  void *weights = nullptr, *states = nullptr;
  float *spectrum = nullptr, *mask = nullptr;               // as the caller sees them
  float *spectrum_device = nullptr, *mask_device = nullptr; // as kernels see them
  unsigned* bad_values = nullptr;
  int* past_device = nullptr;
  std::vector<int> past;           // of every stream, see window_start
  std::vector<cudaGraphExec_t> live, ending;
  int graph_nodes = 0;
  unsigned frame = 0;
  ek_cuda_info info{};

  size_t numbers() const { return static_cast<size_t>(plan.options.streams) * 2 * plan.bins; }

  ~ek_cuda_engine() {
    const OnDevice here(device);
    if (stream) cudaStreamSynchronize(stream);
    for (cudaGraphExec_t graph : live) cudaGraphExecDestroy(graph);
    for (cudaGraphExec_t graph : ending) cudaGraphExecDestroy(graph);
    cudaFree(weights);
    cudaFree(states);
    cudaFree(bad_values);
    cudaFree(past_device);
    if (io == EK_CUDA_IO_HOST) {
      cudaFreeHost(spectrum);
      cudaFreeHost(mask);
    } else {
      cudaFree(spectrum);
      cudaFree(mask);
    }
    if (stream) cudaStreamDestroy(stream);
    cudaGetLastError();
  }
};

namespace {

ek_status allocate_io(ek_cuda_engine* e) {
  const size_t bytes = e->numbers() * sizeof(float);
  if (e->io == EK_CUDA_IO_DEVICE) {
    EK_TRY(cudaMalloc(reinterpret_cast<void**>(&e->spectrum), bytes));
    EK_TRY(cudaMalloc(reinterpret_cast<void**>(&e->mask), bytes));
    EK_TRY(cudaMemsetAsync(e->spectrum, 0, bytes, e->stream));
    e->spectrum_device = e->spectrum;
    e->mask_device = e->mask;
    return EK_OK;
  }
  EK_TRY(cudaHostAlloc(reinterpret_cast<void**>(&e->spectrum), bytes, cudaHostAllocMapped));
  EK_TRY(cudaHostAlloc(reinterpret_cast<void**>(&e->mask), bytes, cudaHostAllocMapped));
  std::memset(e->spectrum, 0, bytes);
  EK_TRY(cudaHostGetDevicePointer(reinterpret_cast<void**>(&e->spectrum_device), e->spectrum, 0));
  EK_TRY(cudaHostGetDevicePointer(reinterpret_cast<void**>(&e->mask_device), e->mask, 0));
  return EK_OK;
}

ek_status allocate(ek_cuda_engine* e) {
  const size_t past_bytes = e->past.size() * sizeof(int);
  EK_TRY(cudaMalloc(&e->weights, e->plan.weights.size()));
  EK_TRY(cudaMalloc(&e->states, e->plan.state_bytes()));
  EK_TRY(cudaMalloc(reinterpret_cast<void**>(&e->bad_values), sizeof(unsigned)));
  EK_TRY(cudaMalloc(reinterpret_cast<void**>(&e->past_device), past_bytes));
  EK_TRY(cudaMemcpyAsync(e->weights, e->plan.weights.data(), e->plan.weights.size(), cudaMemcpyHostToDevice, e->stream));
  EK_TRY(cudaMemsetAsync(e->states, 0, e->plan.state_bytes(), e->stream));
  EK_TRY(cudaMemsetAsync(e->bad_values, 0, sizeof(unsigned), e->stream));
  EK_TRY(cudaMemcpyAsync(e->past_device, e->past.data(), past_bytes, cudaMemcpyHostToDevice, e->stream));
  return allocate_io(e);
}

cudaError_t launch_all(const std::vector<Node>& nodes, cudaStream_t stream, const char** name) {
  for (const Node& node : nodes) {
    *name = node.name.c_str();
    const cudaError_t error = launch(node, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Every kernel once, outside of a capture: CUDA may load a kernel's code when it is first launched, which a capture forbids, and a fault
// shows here and not in the first frame. The states are zeros again afterwards.
ek_status rehearse(ek_cuda_engine* e) {
  const Memory memory{e->weights, e->states, e->spectrum_device, e->mask_device, e->bad_values, nullptr};
  const std::vector<Node> nodes = bind(e->plan, memory, 0);
  const char* name = "";
  const cudaError_t launched = launch_all(nodes, e->stream, &name);
  if (launched != cudaSuccess) return failed(name, launched);
  EK_TRY(cudaMemsetAsync(e->states, 0, e->plan.state_bytes(), e->stream));
  EK_TRY(cudaStreamSynchronize(e->stream));
  return EK_OK;
}

// The graph of frame number `frame`. A capture that was begun is always ended, whatever failed in between.
ek_status capture(ek_cuda_engine* e, unsigned frame, bool ending, cudaGraphExec_t* executable) {
  const Memory memory{e->weights, e->states, e->spectrum_device, e->mask_device, e->bad_values, ending ? e->past_device : nullptr};
  const std::vector<Node> nodes = bind(e->plan, memory, frame);
  const char* name = "";
  cudaGraph_t graph = nullptr;
  EK_TRY(cudaStreamBeginCapture(e->stream, cudaStreamCaptureModeThreadLocal));
  const cudaError_t launched = launch_all(nodes, e->stream, &name);
  const cudaError_t ended = cudaStreamEndCapture(e->stream, &graph);
  size_t count = 0;
  cudaError_t error = launched != cudaSuccess ? launched : ended;
  if (error == cudaSuccess) error = cudaGraphGetNodes(graph, nullptr, &count);
  if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(executable, graph, 0);
  if (error == cudaSuccess) error = cudaGraphUpload(*executable, e->stream);  // now, and not with the first frame
  if (graph) cudaGraphDestroy(graph);
  if (error != cudaSuccess) return failed(launched != cudaSuccess ? name : "capturing the graph of a frame", error);
  if (count != nodes.size())
    return fail(EK_CUDA_FAILED, "the captured graph has %zu nodes instead of %zu", count, nodes.size());
  e->graph_nodes = static_cast<int>(count);
  return EK_OK;
}

ek_status capture_all(ek_cuda_engine* e) {
  for (int ending = 0; ending <= (e->plan.delay ? 1 : 0); ++ending)
    for (unsigned frame = 0; frame < e->plan.period; ++frame) {
      cudaGraphExec_t executable = nullptr;
      const ek_status status = capture(e, frame, ending != 0, &executable);
      if (executable) (ending ? e->ending : e->live).push_back(executable);  // also after a fault: closing destroys it
      if (status) return status;
    }
  return EK_OK;
}

ek_status describe(ek_cuda_engine* e) {
  cudaDeviceProp properties;
  EK_TRY(cudaGetDeviceProperties(&properties, e->device));
  ek_cuda_info& info = e->info;
  info.streams = e->plan.options.streams;
  info.precision = e->precision;
  info.io = e->io;
  info.bins = e->plan.bins;
  info.delay = e->plan.delay;
  info.graph_nodes = e->graph_nodes;
  info.graphs = static_cast<int32_t>(e->live.size() + e->ending.size());
  info.multiprocessors = properties.multiProcessorCount;
  info.compute_capability = properties.major * 10 + properties.minor;
  info.weight_bytes = e->plan.weights.size();
  info.state_bytes = e->plan.state_bytes();
  info.macs_per_frame = static_cast<uint64_t>(e->plan.macs);
  std::snprintf(info.device, sizeof info.device, "%s", properties.name);
  return EK_OK;
}

ek_status check(const ek_cuda_options& options) {
  if (options.streams < 1 || options.streams > EK_CUDA_MAX_STREAMS)
    return fail(EK_BAD_ARGUMENT, "options.streams is %d; it may be 1 to %d", options.streams, EK_CUDA_MAX_STREAMS);
  if (options.precision != EK_CUDA_FP32 && options.precision != EK_CUDA_FP16)
    return fail(EK_BAD_ARGUMENT, "options.precision is %d; it may be EK_CUDA_FP32 or EK_CUDA_FP16", options.precision);
  if (options.io != EK_CUDA_IO_HOST && options.io != EK_CUDA_IO_DEVICE)
    return fail(EK_BAD_ARGUMENT, "options.io is %d; it may be EK_CUDA_IO_HOST or EK_CUDA_IO_DEVICE", options.io);
  int devices = 0;
  EK_TRY(cudaGetDeviceCount(&devices));
  if (options.device < 0 || options.device >= devices)
    return fail(EK_BAD_ARGUMENT, "options.device is %d; there %s %d GPU%s", options.device, devices == 1 ? "is" : "are", devices, devices == 1 ? "" : "s");
  return EK_OK;
}

ek_status open(const WeightFile& file, const ek_cuda_options& options, ek_cuda_engine** out) {
  if (const ek_status status = check(options)) return status;
  Model model;
  if (const ek_status status = load(file, &model)) return status;
  const OnDevice here(options.device);
  if (here.status() != cudaSuccess) return failed("choosing the device", here.status());
  int processors = 0, major = 0, minor = 0;
  EK_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, options.device));
  EK_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device));
  EK_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, options.device));
  if (check_image() == cudaErrorNoKernelImageForDevice)
    return fail(EK_UNSUPPORTED, "this build holds no code for sm_%d%d: build again with -DCMAKE_CUDA_ARCHITECTURES=%d%d", major, minor, major, minor);

  auto engine = std::make_unique<ek_cuda_engine>();
  engine->device = options.device;
  engine->precision = options.precision;
  engine->io = options.io;
  PlanOptions wanted;
  wanted.streams = options.streams;
  wanted.half = options.precision == EK_CUDA_FP16;
  wanted.processors = processors;
  std::string why;
  if (!make_plan(model, wanted, &engine->plan, &why)) return fail(EK_UNSUPPORTED, "%s", why.c_str());
  engine->past.assign(static_cast<size_t>(options.streams), kLive);
  EK_TRY(cudaStreamCreateWithFlags(&engine->stream, cudaStreamNonBlocking));
  if (const ek_status status = allocate(engine.get())) return status;
  if (const ek_status status = rehearse(engine.get())) return status;
  if (const ek_status status = capture_all(engine.get())) return status;
  EK_TRY(cudaStreamSynchronize(engine->stream));  // the weights are read from a vector that goes next
  if (const ek_status status = describe(engine.get())) return status;
  std::vector<unsigned char>().swap(engine->plan.weights);
  *out = engine.release();
  return EK_OK;
}

// Nothing thrown may cross the C API; what can be thrown here is that memory ran out.
template <class Work>
ek_status guarded(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return fail(EK_NO_MEMORY, "there is not enough host memory");
  } catch (...) {
    return fail(EK_CUDA_FAILED, "an unexpected failure on the host side");
  }
}

ek_status null(const char* name) { return fail(EK_BAD_ARGUMENT, "%s is null", name); }

ek_status open_bytes(const void* bytes, size_t n, const ek_cuda_options* options, ek_cuda_engine** engine) {
  ek_cuda_options chosen = EK_CUDA_OPTIONS_INIT;
  if (options && options->size != sizeof chosen)
    return fail(EK_BAD_ARGUMENT, "options.size is %zu; start from EK_CUDA_OPTIONS_INIT, which has %zu", options->size, sizeof chosen);
  if (options) chosen = *options;
  return guarded([&] {
    WeightFile file;
    if (const ek_status status = read_weight_file(bytes, n, &file)) return status;
    return open(file, chosen, engine);
  });
}

bool all_finite(const float* values, size_t n) {
  float sum = 0.0f;  // 0 * NaN and 0 * infinity are NaN
  for (size_t i = 0; i < n; ++i) sum += 0.0f * values[i];
  return sum == 0.0f;
}

}  // namespace

int32_t ek_cuda_devices(void) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return devices;
}

ek_status ek_cuda_open(const char* path, const ek_cuda_options* options, ek_cuda_engine** engine) {
  if (!path) return null("path");
  if (!engine) return null("engine");
  *engine = nullptr;
  MappedFile file;
  if (const ek_status status = file.open(path)) return status;
  return open_bytes(file.bytes(), file.size(), options, engine);
}

ek_status ek_cuda_open_memory(const void* bytes, size_t n, const ek_cuda_options* options, ek_cuda_engine** engine) {
  if (!bytes) return null("bytes");
  if (!engine) return null("engine");
  *engine = nullptr;
  return open_bytes(bytes, n, options, engine);
}

ek_status ek_cuda_get_info(const ek_cuda_engine* engine, ek_cuda_info* info) {
  if (!engine) return null("engine");
  if (!info) return null("info");
  if (info->size != sizeof *info) return fail(EK_BAD_ARGUMENT, "info.size is %zu instead of %zu", info->size, sizeof *info);
  *info = engine->info;
  info->size = sizeof *info;
  return EK_OK;
}

void ek_cuda_close(ek_cuda_engine* engine) { delete engine; }

ek_status ek_cuda_launch(ek_cuda_engine* engine) {
  if (!engine) return null("engine");
  const OnDevice here(engine->device);
  if (here.status() != cudaSuccess) return failed("choosing the device", here.status());
  bool ending = false;
  for (int& past : engine->past) {
    if (past == kLive) continue;
    if (past <= engine->plan.delay) ++past;  // beyond that nothing of the clip is left
    ending = true;
  }
  // From pageable memory, which CUDA has read when the call returns: the next step may change it.
  if (ending)
    EK_TRY(cudaMemcpyAsync(engine->past_device, engine->past.data(), engine->past.size() * sizeof(int), cudaMemcpyHostToDevice, engine->stream));
  EK_TRY(cudaGraphLaunch((ending ? engine->ending : engine->live)[engine->frame % engine->plan.period], engine->stream));
  ++engine->frame;
  return EK_OK;
}

ek_status ek_cuda_wait(ek_cuda_engine* engine) {
  if (!engine) return null("engine");
  EK_TRY(cudaStreamSynchronize(engine->stream));
  return EK_OK;
}

ek_status ek_cuda_step(ek_cuda_engine* engine, const float* spectrum, float* mask) {
  if (!engine) return null("engine");
  if (!spectrum) return null("spectrum");
  if (!mask) return null("mask");
  const size_t each = 2 * static_cast<size_t>(engine->plan.bins), bytes = engine->numbers() * sizeof(float);
  for (int s = 0; s < engine->plan.options.streams; ++s)
    if (engine->past[s] == kLive && !all_finite(spectrum + s * each, each))
      return fail(EK_BAD_AUDIO, "the spectrum of stream %d holds a NaN or an infinity", s);
  const bool device = engine->io == EK_CUDA_IO_DEVICE;
  if (device)
    EK_TRY(cudaMemcpyAsync(engine->spectrum, spectrum, bytes, cudaMemcpyHostToDevice, engine->stream));
  else
    std::memcpy(engine->spectrum, spectrum, bytes);
  if (const ek_status status = ek_cuda_launch(engine)) return status;
  if (device) EK_TRY(cudaMemcpyAsync(mask, engine->mask, bytes, cudaMemcpyDeviceToHost, engine->stream));
  EK_TRY(cudaStreamSynchronize(engine->stream));
  if (!device) std::memcpy(mask, engine->mask, bytes);
  return EK_OK;
}

ek_status ek_cuda_buffers(ek_cuda_engine* engine, float** spectrum, float** mask) {
  if (!engine) return null("engine");
  if (!spectrum) return null("spectrum");
  if (!mask) return null("mask");
  *spectrum = engine->spectrum;
  *mask = engine->mask;
  return EK_OK;
}

void* ek_cuda_stream(const ek_cuda_engine* engine) { return engine ? engine->stream : nullptr; }

ek_status ek_cuda_bad_values(ek_cuda_engine* engine, uint32_t* count) {
  if (!engine) return null("engine");
  if (!count) return null("count");
  unsigned values = 0;
  EK_TRY(cudaMemcpyAsync(&values, engine->bad_values, sizeof values, cudaMemcpyDeviceToHost, engine->stream));
  EK_TRY(cudaStreamSynchronize(engine->stream));
  *count = values;
  return EK_OK;
}

namespace {
ek_status check_stream(const ek_cuda_engine* engine, int32_t stream, bool all_allowed) {
  if (!engine) return null("engine");
  const int streams = engine->plan.options.streams;
  if (stream >= (all_allowed ? -1 : 0) && stream < streams) return EK_OK;
  return fail(EK_BAD_ARGUMENT, "there is no stream %d: the engine has %d", stream, streams);
}
}  // namespace

ek_status ek_cuda_reset(ek_cuda_engine* engine, int32_t stream) {
  if (const ek_status status = check_stream(engine, stream, true)) return status;
  const OnDevice here(engine->device);
  if (here.status() != cudaSuccess) return failed("choosing the device", here.status());
  const int first = stream < 0 ? 0 : stream, last = stream < 0 ? engine->plan.options.streams : stream + 1;
  unsigned char* states = static_cast<unsigned char*>(engine->states);
  EK_TRY(cudaMemsetAsync(states + first * engine->plan.stream_bytes, 0, (last - first) * engine->plan.stream_bytes, engine->stream));
  for (int s = first; s < last; ++s) engine->past[s] = kLive;
  return EK_OK;
}

ek_status ek_cuda_end(ek_cuda_engine* engine, int32_t stream) {
  if (const ek_status status = check_stream(engine, stream, false)) return status;
  if (engine->plan.delay && engine->past[stream] == kLive) engine->past[stream] = 0;
  return EK_OK;
}

ek_status ek_cuda_complex_conv2d(const ek_complex_conv2d_shape* shape, int64_t n, int64_t t, int32_t precision, const void* x, const void* w,
                                 const float* gain, const float* bias, float slope, void* y, void* stream) {
  if (!shape) return null("shape");
  if (!x || !w || !y) return null("x, w or y");
  if (precision != EK_CUDA_FP32 && precision != EK_CUDA_FP16) return fail(EK_BAD_ARGUMENT, "precision is %d; it may be EK_CUDA_FP32 or EK_CUDA_FP16", precision);
  int64_t f_out = 0, t_out = 0;
  if (const ek_status status = ek_complex_conv2d_output(shape, t, &f_out, &t_out)) return status;
  const int64_t limit = int64_t(1) << 31;
  if (n < 1 || n >= limit || t >= limit || f_out >= limit || t_out >= limit) return fail(EK_BAD_ARGUMENT, "a size of the tensors is beyond 2^31");
  ek::cuda::Tensor p{};
  p.transposed = shape->transposed;
  p.n = static_cast<int>(n);
  p.c_in = shape->c_in;
  p.c_out = shape->c_out;
  p.f = shape->f;
  p.t = static_cast<int>(t);
  p.f_out = static_cast<int>(f_out);
  p.t_out = static_cast<int>(t_out);
  p.kernel_f = shape->kernel[0];
  p.kernel_t = shape->kernel[1];
  p.stride_f = shape->stride[0];
  p.stride_t = shape->stride[1];
  p.pad_f = shape->padding[0];
  p.pad_t = shape->padding[1];
  p.x = x;
  p.w = w;
  p.gain = gain;
  p.bias = bias;
  p.slope = slope;
  p.y = y;
  int ct = 0, blocks_x = 0, blocks_y = 0;
  if (!plan_tensor(&p, &ct, &blocks_x, &blocks_y)) return fail(EK_BAD_ARGUMENT, "complex convolution: the kernel or the tensor is too large for one launch");
  EK_TRY(launch(p, precision == EK_CUDA_FP16, ct, blocks_x, blocks_y, static_cast<cudaStream_t>(stream)));
  return EK_OK;
}
