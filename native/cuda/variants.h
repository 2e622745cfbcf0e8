// Which instances of the kernels exist: one list for nvcc's launch table, for NVRTC and for the CPU emulation. A list is a macro
// because C++ has no other way to write explicit instantiations in a loop.
#ifndef EK_CUDA_VARIANTS_H
#define EK_CUDA_VARIANTS_H

// Channels and columns that a thread sums. One column suits few streams in the projection, four a single stream, eight many streams.
#define EK_CONV_CUTS(X, IN, OUT, PARTS) X(IN, OUT, PARTS, 1, 1) X(IN, OUT, PARTS, 1, 4) X(IN, OUT, PARTS, 2, 4) X(IN, OUT, PARTS, 2, 8)

// Input and weights, output, product of parts (projection), ...
#define EK_CONV_VARIANTS(X)            \
  EK_CONV_CUTS(X, float, float, false) \
  EK_CONV_CUTS(X, float, Half, false)  \
  EK_CONV_CUTS(X, Half, Half, false)   \
  EK_CONV_CUTS(X, Half, float, false)  \
  EK_CONV_CUTS(X, float, float, true)  \
  EK_CONV_CUTS(X, Half, Half, true)

#define EK_RECURRENT_VARIANTS(X) X(float, 1) X(float, 2) X(Half, 1) X(Half, 2)

#define EK_TENSOR_VARIANTS(X) X(float, 1) X(float, 8) X(Half, 1) X(Half, 8)

#endif
