// What differs between TensorRT 8.5, 10 and 11, and nothing else. Only their public inline functions are called.
#ifndef EK_TRT_SHELL_H
#define EK_TRT_SHELL_H

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <string>

#include "stop.h"

static_assert(NV_TENSORRT_MAJOR > 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR >= 5), "TensorRT 8.5 or later is needed");

namespace ek {

constexpr bool kHasCalibrator = NV_TENSORRT_MAJOR < 10;       // int8 by a cache of scales; 10 and later take Q/DQ
constexpr bool kCanBeStronglyTyped = NV_TENSORRT_MAJOR >= 10;
constexpr bool kIsStronglyTyped = NV_TENSORRT_MAJOR >= 11;    // always: flags and layers have no precision any more

inline std::string three_numbers(int version, int thousands) {
  return std::to_string(version / thousands) + "." + std::to_string(version % thousands / 100) + "." + std::to_string(version % 100);
}
// `8.5.2` of what getInferLibVersion() gives: 8502 up to version 9, 100300 from 10 on.
inline std::string version_text(int version) { return three_numbers(version, version < 10000 ? 1000 : 10000); }
inline std::string built_for() { return version_text(NV_TENSORRT_VERSION); }

inline nvinfer1::INetworkDefinition* create_network(nvinfer1::IBuilder& builder, bool strongly_typed) {
  nvinfer1::NetworkDefinitionCreationFlags flags = 0;
#if NV_TENSORRT_MAJOR < 10
  flags |= 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#elif NV_TENSORRT_MAJOR < 11
  if (strongly_typed) flags |= 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
  (void)strongly_typed;
  return builder.createNetworkV2(flags);
}

// Callers have refused these on 11, where they cannot be said.
inline void allow_types(nvinfer1::IBuilderConfig& config, bool fp16, bool int8, bool obey_layers) {
#if NV_TENSORRT_MAJOR < 11
  if (fp16) config.setFlag(nvinfer1::BuilderFlag::kFP16);
  if (int8) config.setFlag(nvinfer1::BuilderFlag::kINT8);
  if (obey_layers) config.setFlag(nvinfer1::BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
#else
  (void)config, (void)fp16, (void)int8, (void)obey_layers;
#endif
}

inline void set_precision(nvinfer1::ILayer& layer, const std::string& type) {
#if NV_TENSORRT_MAJOR < 11
  layer.setPrecision(type == "int8" ? nvinfer1::DataType::kINT8 : type == "fp16" ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT);
#else
  (void)layer, (void)type;
#endif
}

// Neither cuBLAS nor cuDNN: they are loaded into the device's memory, hundreds of MB on a Jetson. From 10 on they are off unless asked for.
inline bool use_own_kernels(nvinfer1::IBuilderConfig& config) {
#if NV_TENSORRT_MAJOR < 11
  nvinfer1::TacticSources sources = config.getTacticSources();
  for (const auto source : {nvinfer1::TacticSource::kCUBLAS, nvinfer1::TacticSource::kCUBLAS_LT, nvinfer1::TacticSource::kCUDNN}) sources &= ~(1U << static_cast<uint32_t>(source));
  return config.setTacticSources(sources);
#else
  (void)config;
  return true;
#endif
}

inline int64_t activation_bytes_of(const nvinfer1::ICudaEngine& engine) {
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
  return engine.getDeviceMemorySizeV2();
#else
  return static_cast<int64_t>(engine.getDeviceMemorySize());
#endif
}

// A call of CUDA's that has to work.
inline void cuda(cudaError_t error, const std::string& what, ExitCode code = kMissing) {
  if (error != cudaSuccess) throw Stop(code, what + ": CUDA error " + std::to_string(error) + ", " + cudaGetErrorString(error));
}

}  // namespace ek
#endif
