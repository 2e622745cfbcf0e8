// int8 with AVX-512 VNNI. dpbusd multiplies unsigned by signed bytes, so activations are stored as q + 128 and sums start at
// -128 * (sum of the weights that they meet): exact, and padding of 128 is zero. Frames have a third plane -imag, since there is no
// subtracting dpbusd; so re = Wr.xr + Wi.(-xi).
#include "avx512.h"

namespace ek {
namespace {

struct I8 {
  using V = Vec16;
  using Element = uint8_t;
  using Weight = int8_t;
  using Weights = __m512i;
  using Sum = __m512i;
  struct Input {
    __m512i re, im, minus_im;
  };

  static int planes(int) { return 3; }
  static EK_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static EK_INLINE Sum start_at(const int32_t* start) { return _mm512_loadu_si512(start); }
  static EK_INLINE Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static EK_INLINE __m512 to_float(Sum sum) { return _mm512_cvtepi32_ps(sum); }
  static EK_INLINE __m512 scaled(Sum sum, const float* scale, const float* bias) { return to_float(sum) * V::load(scale) + V::load(bias); }

  static EK_INLINE __m512i spread(const char* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane), spread(x + 2 * plane)}; }
  static EK_INLINE Weights load(const char* w) { return _mm512_load_si512(w); }
  static EK_INLINE Sum dot(Sum sum, Weights w, __m512i x) { return _mm512_dpbusd_epi32(sum, x, w); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = dot(re, w_re, x.re);
    im = dot(im, w_re, x.im);
    re = dot(re, w_im, x.minus_im);
    im = dot(im, w_im, x.re);
  }

  static Weight weight(const float*, const int8_t* q, size_t i) { return q[i]; }
  static int32_t start_of(const int8_t* q, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += q[i];
    return -128 * sum;
  }

  // q of 16 floats in 32 bits: clamped first, in the order that turns a NaN into -127; cvtps rounds half to even.
  static EK_INLINE __m512i quantize(__m512 y, float inv_scale) {
    return _mm512_cvtps_epi32(V::min(V::max(y * V::all(inv_scale), V::all(-127.0f)), V::all(127.0f)));
  }
  static EK_INLINE __m128i bytes(__m512 y, float inv_scale) {
    return _mm_xor_si128(_mm512_cvtepi32_epi8(quantize(y, inv_scale)), _mm_set1_epi8(-128));
  }
  static EK_INLINE void store_bytes(Element* to, __m128i q) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), q); }
  static EK_INLINE void store(Element* to, __m512 y, float inv_scale) { store_bytes(to, bytes(y, inv_scale)); }
  static EK_INLINE void store_complex(Element* row, ptrdiff_t plane, __m512 re, __m512 im, float inv_scale, int) {
    const __m128i q_im = bytes(im, inv_scale);
    store_bytes(row, bytes(re, inv_scale));
    store_bytes(row + plane, q_im);
    store_bytes(row + 2 * plane, _mm_sub_epi8(_mm_setzero_si128(), q_im));  // 128 - q is 256 - (q + 128)
  }
};

}  // namespace

extern const Row avx512_i8 = row_of<I8>("avx512_i8", EK_I8, 3, 128);

}  // namespace ek
