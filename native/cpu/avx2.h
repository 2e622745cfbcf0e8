// Vectors of 8 floats for x86.h.
#ifndef EK_CPU_AVX2_H
#define EK_CPU_AVX2_H

#include <immintrin.h>

#include "x86.h"

namespace ek {
namespace {

struct Vec8 {
  using Floats = __m256;
  static constexpr int kLanes = 8;

  static Cut cut_of(int) { return Cut{1, 6}; }  // 12 sums of 16 registers

  static EK_INLINE Floats zero() { return _mm256_setzero_ps(); }
  static EK_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
  static EK_INLINE Floats load(const float* x) { return _mm256_loadu_ps(x); }
  static EK_INLINE Floats load_some(const float* x, int n) {  // n <= 0: none, and x is not touched
    return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
  }
  static EK_INLINE void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static EK_INLINE Floats plus_product(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }
  static EK_INLINE Floats minus_product(Floats a, Floats b, Floats sum) { return _mm256_fnmadd_ps(a, b, sum); }
  static EK_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static EK_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static EK_INLINE Floats round(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static EK_INLINE Floats times_two_to(Floats x, Floats n) {  // |n| < 126, and a NaN in x stays one
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return x * _mm256_castsi256_ps(exponent);
  }
  static EK_INLINE Floats prelu(Floats y, Floats slope) { return _mm256_blendv_ps(y * slope, y, _mm256_cmp_ps(y, zero(), _CMP_GT_OQ)); }

  // sums[i]: the sum over the lanes of v[i], for eight of them.
  static EK_INLINE void store_sums(const Floats* v, float* sums) {
    Floats pair[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) pair[i] = _mm256_hadd_ps(v[2 * i], v[2 * i + 1]);
    const Floats low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);  // [0 1 2 3 | 0 1 2 3], [4 5 6 7 | 4 5 6 7]
    store(sums, _mm256_permute2f128_ps(low, high, 0x20) + _mm256_permute2f128_ps(low, high, 0x31));
  }
};

// q of 8 floats in 32 bits: clamped first, in the order that turns a NaN into -127; cvtps rounds half to even.
EK_INLINE __m256i quantize(__m256 y, float inv_scale) {
  return _mm256_cvtps_epi32(Vec8::min(Vec8::max(y * Vec8::all(inv_scale), Vec8::all(-127.0f)), Vec8::all(127.0f)));
}

}  // namespace
}  // namespace ek
#endif
