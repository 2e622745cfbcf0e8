// Runs a plan's nodes on the CPU: the functions of threads.h for every thread of every block, a barrier being the end of a loop over
// threads. Slow on purpose and exact: the same order of operations as on a GPU.
#ifndef EK_CUDA_TESTS_EMULATE_H
#define EK_CUDA_TESTS_EMULATE_H

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "../plan.h"
#include "../threads.h"
#include "../variants.h"

namespace ek {
namespace cuda {

template <class In, class Out, bool kParts, int CT, int NT>
void emulate_conv(const Conv& p, int blocks) {
  using Thread = ConvThread<In, Out, kParts, CT, NT>;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int block = 0; block < blocks; ++block) {
    std::vector<Complex> shared(Thread::kShared, Complex{nan, nan});  // a block starts with rubbish in shared memory
    for (int thread = 0; thread < kThreads; ++thread) Thread::sum(p, block, thread, shared.data());
    for (int thread = 0; thread < kThreads; ++thread) gather_parts(Thread::gather(p), thread, shared.data());
    for (int thread = 0; thread < kThreads; ++thread) Thread::finish(p, block, thread, shared.data());
  }
}

template <class Number, int NT>
void emulate_recurrent(const Recurrent& p, int blocks) {
  using Thread = RecurrentThread<Number, NT>;
  for (int block = 0; block < blocks; ++block) {
    std::vector<float> shared(Thread::kShared, std::numeric_limits<float>::quiet_NaN());
    for (int thread = 0; thread < kThreads; ++thread) Thread::sum(p, block, thread, shared.data());
    for (int thread = 0; thread < kThreads; ++thread) gather_parts(Thread::gather(p), thread, shared.data());
    for (int thread = 0; thread < kThreads; ++thread) Thread::cell(p, block, thread, shared.data());
    for (int thread = 0; thread < kThreads; ++thread) Thread::combine(p, block, thread, shared.data());
  }
}

template <class Number, int CT>
void emulate_tensor(const Tensor& p, int blocks_x, int blocks_y) {
  using Thread = TensorThread<Number, CT>;
  struct Sums {
    Complex of[CT];
  };
  for (int tile = 0; tile < blocks_y; ++tile)
    for (int block = 0; block < blocks_x; ++block) {
      std::vector<Complex> shared(Thread::kShared);
      std::vector<Sums> sums(kThreads, Sums{});
      for (int first_in = 0; first_in < p.c_in; first_in += p.chunk) {
        for (int thread = 0; thread < kThreads; ++thread) Thread::stage(p, tile, thread, first_in, shared.data());
        for (int thread = 0; thread < kThreads; ++thread) Thread::sum(p, block * kThreads + thread, first_in, shared.data(), sums[thread].of);
      }
      for (int thread = 0; thread < kThreads; ++thread) Thread::finish(p, tile, block * kThreads + thread, sums[thread].of);
    }
}

template <class T>
constexpr bool is_half() {
  return sizeof(T) == sizeof(Half);
}

inline void emulate(const Node& node) {
  const Variant& v = node.variant;
  if (node.what == What::intake) {
    for (int number = 0; number < node.blocks * kThreads; ++number)
      if (!intake_thread(node.intake, number)) ++*node.intake.bad_values;
    return;
  }
  if (node.what == What::recurrent) {
#define EK_INSTANCE(NUMBER, NT) \
  if (v.half_in == is_half<NUMBER>() && v.nt == NT) return emulate_recurrent<NUMBER, NT>(node.recurrent, node.blocks);
    EK_RECURRENT_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
  } else {
#define EK_INSTANCE(IN, OUT, PARTS, CT, NT)                                                                              \
  if (v.half_in == is_half<IN>() && v.half_out == is_half<OUT>() && v.parts == PARTS && v.ct == CT && v.nt == NT)         \
    return emulate_conv<IN, OUT, PARTS, CT, NT>(node.conv, node.blocks);
    EK_CONV_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
  }
  throw std::runtime_error("no instance for " + node.name);
}

inline void emulate(const Tensor& p, bool half, int ct, int blocks_x, int blocks_y) {
#define EK_INSTANCE(NUMBER, CT) \
  if (half == is_half<NUMBER>() && ct == CT) return emulate_tensor<NUMBER, CT>(p, blocks_x, blocks_y);
  EK_TENSOR_VARIANTS(EK_INSTANCE)
#undef EK_INSTANCE
  throw std::runtime_error("no instance for a tensor");
}

}  // namespace cuda
}  // namespace ek
#endif
