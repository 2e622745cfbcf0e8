// `ek_trt build`: an ONNX file to an engine, with the scales and precisions that were asked for, or not at all.
#ifndef EK_TRT_BUILD_H
#define EK_TRT_BUILD_H

#include <string>

namespace ek {

struct BuildJob {
  std::string onnx, engine, layers, report;
  std::string cache, int8_tensors, precisions, timing_cache;
  bool fp16 = false, int8 = false, strongly_typed = false, gpu_fallback = false, tf32 = false, own_kernels = false;
  long workspace_mib = 0;  // 0: TensorRT's own limit
  int dla_core = -1;
};

// "" or why this TensorRT cannot be asked for that.
std::string problem_of(const BuildJob& job);

// Writes the layers, the timing cache, the report and, last, the engine. Throws Stop; old results are gone then.
void build_engine(const BuildJob& job);

}  // namespace ek
#endif
