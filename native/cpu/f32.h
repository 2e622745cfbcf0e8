// f32 for x86.h, for vectors of any width.
#ifndef EK_CPU_F32_H
#define EK_CPU_F32_H

#include "x86.h"

namespace ek {
namespace {

template <class Vec>
struct F32 {
  using V = Vec;
  using Element = float;
  using Weight = float;
  using Weights = typename V::Floats;
  using Sum = typename V::Floats;
  struct Input {
    typename V::Floats re, im;
  };

  static EK_INLINE int planes(int algorithm) { return algorithm == EK_GAUSS ? 3 : 2; }
  static EK_INLINE Sum zero() { return V::zero(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return a + b; }
  static EK_INLINE Sum to_float(Sum sum) { return sum; }
  static EK_INLINE Sum scaled(Sum sum, const float*, const float* bias) { return sum + V::load(bias); }

  static EK_INLINE Sum spread(const char* x) { return V::all(*reinterpret_cast<const float*>(x)); }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane)}; }
  static EK_INLINE Weights load(const char* w) { return V::load(reinterpret_cast<const float*>(w)); }
  static EK_INLINE Sum dot(Sum sum, Weights w, Sum x) { return V::plus_product(w, x, sum); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = V::plus_product(w_re, x.re, re);
    im = V::plus_product(w_re, x.im, im);
    re = V::minus_product(w_im, x.im, re);
    im = V::plus_product(w_im, x.re, im);
  }

  static Weight weight(const float* w, const int8_t*, size_t i) { return w[i]; }
  static int32_t start_of(const int8_t*, int) { return 0; }

  static EK_INLINE void store(float* to, Sum y, float) { V::store(to, y); }
  static EK_INLINE void store_complex(float* row, ptrdiff_t plane, Sum re, Sum im, float, int planes) {
    V::store(row, re);
    V::store(row + plane, im);
    if (planes == 3) V::store(row + 2 * plane, re + im);
  }
};

}  // namespace
}  // namespace ek
#endif
