// int8 with VNNI for x86.h, for vectors of any width: `V` adds what integers need.
//
// dpbusd multiplies unsigned by signed bytes, so activations are stored as q + 128 and sums start at -128 * (sum of the weights that they
// meet): exact, and padding of 128 is zero. Frames have a third plane -imag, since there is no subtracting dpbusd: re = Wr.xr + Wi.(-xi).
#ifndef EK_CPU_VNNI_H
#define EK_CPU_VNNI_H

#include "x86.h"

namespace ek {
namespace {

template <class Vec>
struct Vnni {
  using V = Vec;
  using F = typename V::Floats;
  using Element = uint8_t;
  using Weight = int8_t;
  using Weights = typename V::Ints;
  using Sum = typename V::Ints;
  struct Input {
    typename V::Ints re, im, minus_im;
  };

  static constexpr bool kStoresSum = true;
  static EK_INLINE Weights load_sum(const char* w, size_t half) { return load(w + 2 * half); }
  static EK_INLINE Sum kept(const float* at, const int32_t* start) { return V::add_ints(V::load_ints(at), V::load_ints(start)); }
  static EK_INLINE void keep(float* at, Sum sum) { V::store_ints(at, sum); }
  static EK_INLINE Sum minus(const int32_t* start, Sum sum) { return V::minus_ints(V::load_ints(start), sum); }
  static EK_INLINE Sum negative(Sum sum) { return V::minus_ints(zero(), sum); }
  static int planes(int) { return 3; }
  static EK_INLINE Sum zero() { return V::zero_ints(); }
  static EK_INLINE Sum start_at(const int32_t* start) { return V::load_ints(start); }
  static EK_INLINE Sum add(Sum a, Sum b) { return V::add_ints(a, b); }
  static EK_INLINE F to_float(Sum sum) { return V::to_floats(sum); }
  static EK_INLINE F scaled(Sum sum, const float* scale, const float* bias) { return to_float(sum) * V::load(scale) + V::load(bias); }

  static EK_INLINE typename V::Ints spread(const char* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return V::all_ints(four);
  }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane), spread(x + 2 * plane)}; }
  static EK_INLINE Weights load(const char* w) { return V::load_ints(w); }
  static EK_INLINE Sum dot(Sum sum, Weights w, typename V::Ints x) { return V::dot(sum, x, w); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = dot(re, w_re, x.re);
    im = dot(im, w_re, x.im);
    re = dot(re, w_im, x.minus_im);
    im = dot(im, w_im, x.re);
  }

  static Weight weight(const float*, const int8_t* q, size_t i) { return q[i]; }
  static Weight sum_weight(const float*, const int8_t* q, size_t i, size_t k) { return static_cast<int8_t>(q[i] + q[k]); }
  static int32_t start_of(const int8_t* q, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += q[i];
    return -128 * sum;
  }

  // q + 128 of every lane: clamped first, in the order that turns a NaN into -127; then rounded half to even.
  static EK_INLINE __m128i bytes(F y, float inv_scale) {
    const F scaled = V::min(V::max(y * V::all(inv_scale), V::all(-127.0f)), V::all(127.0f));
    return _mm_xor_si128(V::to_bytes(scaled), _mm_set1_epi8(-128));
  }
  static EK_INLINE void store(Element* to, F y, float inv_scale) { V::store_bytes(to, bytes(y, inv_scale)); }
  static EK_INLINE void store_complex(Element* row, ptrdiff_t plane, F re, F im, float inv_scale, int) {
    const __m128i q_im = bytes(im, inv_scale);
    V::store_bytes(row, bytes(re, inv_scale));
    V::store_bytes(row + plane, q_im);
    V::store_bytes(row + 2 * plane, _mm_sub_epi8(_mm_setzero_si128(), q_im));  // 128 - q is 256 - (q + 128)
  }

  // now - before, clamped to +-127. Offsets cancel; `wrapped` is what eight bits hold of the true difference.
  static EK_INLINE __m128i difference(const Element* now, const Element* before, __m128i* misfits) {
    const __m128i sign = _mm_set1_epi8(-128), a = V::read_bytes(now), b = V::read_bytes(before);
    const __m128i clamped = _mm_max_epi8(_mm_subs_epi8(_mm_xor_si128(a, sign), _mm_xor_si128(b, sign)), _mm_set1_epi8(-127));
    *misfits = _mm_or_si128(*misfits, _mm_xor_si128(clamped, _mm_sub_epi8(a, b)));
    return _mm_xor_si128(clamped, sign);
  }
  static EK_INLINE bool write_change(const Element* now, const Element* before, Element* change, ptrdiff_t plane, int) {
    __m128i misfits = _mm_setzero_si128();
    const __m128i re = difference(now, before, &misfits), im = difference(now + plane, before + plane, &misfits);
    V::store_bytes(change, re);
    V::store_bytes(change + plane, im);
    V::store_bytes(change + 2 * plane, _mm_sub_epi8(_mm_setzero_si128(), im));
    return _mm_testz_si128(misfits, misfits);
  }
};

}  // namespace
}  // namespace ek
#endif
