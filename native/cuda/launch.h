// Kernel launches, the only thing that nvcc compiles; everything around them is C++ for the host's own compiler.
#ifndef EK_CUDA_LAUNCH_H
#define EK_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "cuda/plan.h"

namespace ek {
namespace cuda {

// cudaErrorInvalidValue where no instance fits: a fault of the plan.
cudaError_t launch(const Node& node, cudaStream_t stream);
cudaError_t launch(const Tensor& tensor, bool half, int ct, int blocks_x, int blocks_y, cudaStream_t stream);
// Whether this build holds code for the current device.
cudaError_t check_image();

}  // namespace cuda
}  // namespace ek
#endif
