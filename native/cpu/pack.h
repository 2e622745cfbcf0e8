// Dealing out the memory that packed weights live in. Everything here is `static`, so that no instruction set's copy serves another.
#ifndef EK_CPU_PACK_H
#define EK_CPU_PACK_H

#include "../core/kernels.h"

namespace ek {

// Hands out 64-byte aligned pieces of `base`; without a base it only counts, so one function both measures and fills.
struct Carver {
  char* base;
  size_t used;
};

template <class T>
static T* take(Carver& carver, size_t count) {
  T* piece = carver.base ? reinterpret_cast<T*>(carver.base + carver.used) : nullptr;
  carver.used += (count * sizeof(T) + 63) / 64 * 64;
  return piece;
}

// `n` values and zeros up to `to`; no values: all zeros. Nothing where only counting.
static inline void copy_padded(const float* from, int n, float* piece, int to) {
  if (!piece) return;
  for (int i = 0; i < to; i++) piece[i] = from && i < n ? from[i] : 0.0f;
}

static inline int sum_of(const int* values, int n) {
  int sum = 0;
  for (int i = 0; i < n; i++) sum += values[i];
  return sum;
}

// How many weights of one part a layer's older frames have; the newer ones' follow them.
static inline size_t weights_of_half(const ConvSpec* spec) {
  size_t count = 0;
  for (int t = 0; t < spec->n_taps / 2; t++) count += static_cast<size_t>(spec->c_out) * spec->sources[t].c_in;
  return count;
}

}  // namespace ek
#endif
