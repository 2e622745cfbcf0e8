// The kernels: threads.h with barriers in between. Compiles with nvcc for sm_75 and later and with NVRTC 11.8 for sm_72 (Xavier):
// no host headers, no cp.async, no bulk copies, no bf16.
#ifndef EK_CUDA_KERNELS_CUH
#define EK_CUDA_KERNELS_CUH

#include "threads.h"
#include "variants.h"

namespace ek {
namespace cuda {

// Blocks that a multiprocessor should be able to hold. Said aloud, since ptxas otherwise saves registers for more, and spills for it.
constexpr int kBlocks = 1;

template <class In, class Out, bool kParts, int CT, int NT>
__global__ void __launch_bounds__(kThreads, kBlocks) conv_kernel(const Conv p) {
  using Thread = ConvThread<In, Out, kParts, CT, NT>;
  __shared__ Complex shared[Thread::kShared];
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  Thread::sum(p, block, thread, shared);
  __syncthreads();
  gather_parts(Thread::gather(p), thread, shared);
  __syncthreads();
  Thread::finish(p, block, thread, shared);
}

template <class Number, int NT>
__global__ void __launch_bounds__(kThreads, kBlocks) recurrent_kernel(const Recurrent p) {
  using Thread = RecurrentThread<Number, NT>;
  __shared__ float shared[Thread::kShared];
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  Thread::sum(p, block, thread, shared);
  __syncthreads();
  gather_parts(Thread::gather(p), thread, shared);
  __syncthreads();
  Thread::cell(p, block, thread, shared);
  __syncthreads();
  Thread::combine(p, block, thread, shared);
}

template <int>
__global__ void __launch_bounds__(kThreads, kBlocks) intake_kernel(const Intake p) {
  const bool fine = intake_thread(p, static_cast<int>(blockIdx.x * kThreads + threadIdx.x));
  if (!fine) atomicAdd(p.bad_values, 1u);
}

template <class Number, int CT>
__global__ void __launch_bounds__(kThreads, kBlocks) tensor_kernel(const Tensor p) {
  using Thread = TensorThread<Number, CT>;
  __shared__ Complex shared[Thread::kShared];
  const int tile = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int position = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  Complex sums[CT];
  for (int i = 0; i < CT; ++i) sums[i] = Complex{0.0f, 0.0f};
  for (int first_in = 0; first_in < p.c_in; first_in += p.chunk) {
    Thread::stage(p, tile, thread, first_in, shared);
    __syncthreads();
    Thread::sum(p, position, first_in, shared, sums);
    __syncthreads();
  }
  Thread::finish(p, tile, position, sums);
}

// NVRTC has no host code that would ask for an instance, so it compiles them all by name.
#if defined(__CUDACC_RTC__)
#define EK_INSTANCE(IN, OUT, PARTS, CT, NT) template __global__ void conv_kernel<IN, OUT, PARTS, CT, NT>(Conv);
EK_CONV_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
#define EK_INSTANCE(NUMBER, NT) template __global__ void recurrent_kernel<NUMBER, NT>(Recurrent);
EK_RECURRENT_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
#define EK_INSTANCE(NUMBER, CT) template __global__ void tensor_kernel<NUMBER, CT>(Tensor);
EK_TENSOR_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
template __global__ void intake_kernel<0>(Intake);
#endif

}  // namespace cuda
}  // namespace ek
#endif
