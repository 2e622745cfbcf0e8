#include "cuda/launch.h"

#include "cuda/kernels.cuh"

namespace ek {
namespace cuda {
namespace {

template <class Number>
constexpr bool is_half() {
  return sizeof(Number) == sizeof(Half);
}

}  // namespace

cudaError_t launch(const Node& node, cudaStream_t stream) {
  const Variant& v = node.variant;
  if (node.what == What::intake) {
    intake_kernel<0><<<node.blocks, kThreads, 0, stream>>>(node.intake);
    return cudaGetLastError();
  }
  if (node.what == What::recurrent) {
#define EK_INSTANCE(NUMBER, NT)                                                              \
  if (v.half_in == is_half<NUMBER>() && v.nt == NT) {                                        \
    recurrent_kernel<NUMBER, NT><<<node.blocks, kThreads, 0, stream>>>(node.recurrent);      \
    return cudaGetLastError();                                                               \
  }
    EK_RECURRENT_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
    return cudaErrorInvalidValue;
  }
#define EK_INSTANCE(IN, OUT, PARTS, CT, NT)                                                                       \
  if (v.half_in == is_half<IN>() && v.half_out == is_half<OUT>() && v.parts == PARTS && v.ct == CT && v.nt == NT) { \
    conv_kernel<IN, OUT, PARTS, CT, NT><<<node.blocks, kThreads, 0, stream>>>(node.conv);                         \
    return cudaGetLastError();                                                                                    \
  }
  EK_CONV_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
  return cudaErrorInvalidValue;
}

cudaError_t launch(const Tensor& tensor, bool half, int ct, int blocks_x, int blocks_y, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
#define EK_INSTANCE(NUMBER, CT)                                           \
  if (half == is_half<NUMBER>() && ct == CT) {                            \
    tensor_kernel<NUMBER, CT><<<blocks, kThreads, 0, stream>>>(tensor);   \
    return cudaGetLastError();                                            \
  }
  EK_TENSOR_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
  return cudaErrorInvalidValue;
}

cudaError_t check_image() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&intake_kernel<0>));
}

}  // namespace cuda
}  // namespace ek
