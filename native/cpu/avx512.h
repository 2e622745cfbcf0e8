// Vectors of 16 floats for x86.h.
#ifndef EK_CPU_AVX512_H
#define EK_CPU_AVX512_H

// GCC 12 warns of its own intrinsics, which name an undefined vector on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "x86.h"

namespace ek {
namespace {

struct Vec16 {
  using Floats = __m512;
  static constexpr int kLanes = 16;

  // 16 complex sums of 32 registers. Few columns: two panels at once, for one alone would not hide the latency of a sum.
  static Cut cut_of(int columns) { return columns > 4 ? Cut{1, 8} : Cut{2, 4}; }

  static EK_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static EK_INLINE Floats all(float x) { return _mm512_set1_ps(x); }
  static EK_INLINE Floats load(const float* x) { return _mm512_loadu_ps(x); }
  static EK_INLINE Floats load_some(const float* x, int n) {  // n <= 0: none, and x is not touched
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n > 0 ? 0xffffu >> (kLanes - n) : 0), x);
  }
  static EK_INLINE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static EK_INLINE Floats plus_product(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
  static EK_INLINE Floats minus_product(Floats a, Floats b, Floats sum) { return _mm512_fnmadd_ps(a, b, sum); }
  static EK_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static EK_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static EK_INLINE Floats round(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static EK_INLINE Floats times_two_to(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
  static EK_INLINE Floats prelu(Floats y, Floats slope) {
    return _mm512_mask_mul_ps(y, _mm512_cmp_ps_mask(y, zero(), _CMP_NGT_UQ), y, slope);
  }

  // sums[i]: the sum over the lanes of v[i], for eight of them.
  static EK_INLINE void store_sums(const Floats* v, float* sums) {
    __m256 half[8], pair[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) half[i] = _mm512_castps512_ps256(v[i]) + _mm512_extractf32x8_ps(v[i], 1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) pair[i] = _mm256_hadd_ps(half[2 * i], half[2 * i + 1]);
    const __m256 low = _mm256_hadd_ps(pair[0], pair[1]), high = _mm256_hadd_ps(pair[2], pair[3]);  // [0 1 2 3 | 0 1 2 3], [4 5 6 7 | 4 5 6 7]
    _mm256_storeu_ps(sums, _mm256_permute2f128_ps(low, high, 0x20) + _mm256_permute2f128_ps(low, high, 0x31));
  }
};

}  // namespace
}  // namespace ek
#endif
