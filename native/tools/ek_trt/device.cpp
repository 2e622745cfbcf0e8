#include "device.h"

#include "log.h"
#include "shell.h"

namespace ek {
namespace {

std::string cuda_version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

// Never destroyed: TensorRT may have something to say at exit.
Log& the_log() {
  static Log* const log = new Log;
  return *log;
}

Json describe_device() {
  const std::string library = "TensorRT " + version_text(getInferLibVersion()) + " (" + std::to_string(getInferLibVersion()) + ") is here";
  int count = 0, runtime = 0, driver = 0, device = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count < 1) {
    throw Stop(kMissing, library + ", a CUDA device is not: " + (error == cudaSuccess ? "none was found" : cudaGetErrorString(error)));
  }
  cuda(cudaRuntimeGetVersion(&runtime), "CUDA runtime");
  cuda(cudaDriverGetVersion(&driver), "CUDA driver");
  cuda(cudaGetDevice(&device), "CUDA device");
  cudaDeviceProp properties;
  cuda(cudaGetDeviceProperties(&properties, device), "CUDA device");
  Json made = Json::object();
  made.set("tensorrt", version_text(getInferLibVersion()));
  made.set("tensorrt_built_for", built_for());
  made.set("cuda_runtime", cuda_version(runtime));
  made.set("cuda_driver", cuda_version(driver));
  made.set("device", std::string(properties.name));
  made.set("sm", std::to_string(properties.major) + std::to_string(properties.minor));
  made.set("memory_bytes", static_cast<uint64_t>(properties.totalGlobalMem));
  return made;
}

Json need_device() {
  const int library = getInferLibVersion();
  if (library != NV_TENSORRT_VERSION) {
    throw Stop(kMissing, "libnvinfer is TensorRT " + version_text(library) + ", this program was compiled for " + built_for() + "; run make again");
  }
  return describe_device();
}

int64_t free_memory() {
  size_t free = 0, total = 0;
  cuda(cudaMemGetInfo(&free, &total), "device memory");
  return static_cast<int64_t>(free);
}

}  // namespace ek
