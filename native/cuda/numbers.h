// Complex pairs in fp32 and fp16 as they stand in memory; arithmetic is always fp32. fp16 is converted with instructions that every
// GPU since sm_53 has, written as PTX: cuda_fp16.h is a header that NVRTC does not bring along.
#ifndef EK_CUDA_NUMBERS_H
#define EK_CUDA_NUMBERS_H

#include "indexing.h"

#if !defined(__CUDACC_RTC__)
#include <math.h>
#include <string.h>
#endif

namespace ek {
namespace cuda {

struct alignas(8) Complex {
  float re, im;
};
struct alignas(4) HalfComplex {
  unsigned bits;  // re in the low half
};
struct Half {
  unsigned short bits;
};

template <class Number>
struct PairOf;
template <>
struct PairOf<float> {
  using type = Complex;
};
template <>
struct PairOf<Half> {
  using type = HalfComplex;
};
template <class Number>
using Pair = typename PairOf<Number>::type;

// N neighbours that one load brings.
template <class T, int N>
struct alignas(sizeof(T) * N) Packet {
  T at[N];
};

constexpr float kHalfMax = 65504.0f;

// One signature for both sides, as CUDA wants it; only the bodies differ. The CPU's: round to nearest, ties to even, subnormals kept.
EK_BOTH float to_float(Half h) {
  float f;
#if defined(__CUDA_ARCH__)
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
#else
  const unsigned sign = static_cast<unsigned>(h.bits & 0x8000) << 16, exponent = (h.bits >> 10) & 31, fraction = h.bits & 1023;
  if (exponent == 0) {
    f = static_cast<float>(fraction) * (1.0f / 16777216.0f);
    return sign ? -f : f;
  }
  const unsigned bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  ::memcpy(&f, &bits, 4);
#endif
  return f;
}
EK_BOTH Half to_half(float f) {
  f = f > kHalfMax ? kHalfMax : f < -kHalfMax ? -kHalfMax : f;  // fp16 saturates; NaN stays NaN
  Half h;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
#else
  unsigned bits;
  ::memcpy(&bits, &f, 4);
  const unsigned sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  unsigned number;
  if (magnitude > 0x7f800000) {
    number = 0x7e00;
  } else if (magnitude < 0x38800000) {  // below the smallest normal number, 2^-14: count steps of 2^-24
    number = static_cast<unsigned>(::nearbyintf((f < 0 ? -f : f) * 16777216.0f));
  } else {
    number = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  h.bits = static_cast<unsigned short>(sign | number);
#endif
  return h;
}
EK_BOTH float to_float(float f) { return f; }

EK_BOTH Complex widen(Complex v) { return v; }
EK_BOTH Complex widen(HalfComplex v) {
  return Complex{to_float(Half{static_cast<unsigned short>(v.bits & 0xffff)}), to_float(Half{static_cast<unsigned short>(v.bits >> 16)})};
}
EK_BOTH void store(float* at, float v) { *at = v; }
EK_BOTH void store(Half* at, float v) { *at = to_half(v); }

EK_BOTH bool is_finite(float v) { return v - v == 0.0f; }  // NaN and infinities give NaN

EK_BOTH float exponential(float v) { return ::expf(v); }
EK_BOTH float tangent_h(float v) { return ::tanhf(v); }
EK_BOTH float sigmoid(float v) { return 1.0f / (1.0f + exponential(-v)); }
EK_BOTH float leaky(float v, float slope) { return v > 0.0f ? v : slope * v; }

}  // namespace cuda
}  // namespace ek
#endif
