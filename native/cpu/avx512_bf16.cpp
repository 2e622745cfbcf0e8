// bf16 with AVX512_BF16: dpbf16 adds two products to an f32 sum. Frames have a third plane -imag, since there is no subtracting dpbf16.
#include "avx512.h"

namespace ek {
namespace {

struct Bf16 : FloatSums<Vec16> {
  using V = Vec16;
  using Element = uint16_t;
  using Weight = uint16_t;
  using Weights = __m512i;
  using Sum = __m512;
  struct Input {
    __m512i re, im, minus_im;
  };

  static constexpr bool kStoresSum = true;
  static EK_INLINE Weights load_sum(const char* w, size_t half) { return load(w + 2 * half); }
  static EK_INLINE __m512 widen(const Element* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))), 16));
  }
  static EK_INLINE bool write_change(const Element* now, const Element* before, Element* change, ptrdiff_t plane, int planes) {
    return write_change_of_floats<Bf16>(now, before, change, plane, planes);
  }
  static int planes(int) { return 3; }
  static EK_INLINE Sum zero() { return V::zero(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return a + b; }
  static EK_INLINE __m512 to_float(Sum sum) { return sum; }
  static EK_INLINE __m512 scaled(Sum sum, const float*, const float* bias) { return sum + V::load(bias); }

  static EK_INLINE __m512i spread(const char* x) {
    int32_t two;
    __builtin_memcpy(&two, x, 4);
    return _mm512_set1_epi32(two);
  }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane), spread(x + 2 * plane)}; }
  static EK_INLINE Weights load(const char* w) { return _mm512_load_si512(w); }
  static EK_INLINE Sum dot(Sum sum, Weights w, __m512i x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = dot(re, w_re, x.re);
    im = dot(im, w_re, x.im);
    re = dot(re, w_im, x.minus_im);
    im = dot(im, w_im, x.re);
  }

  static Weight weight(const float* w, const int8_t*, size_t i) {
    return static_cast<uint16_t>(_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(w[i])), 0));
  }
  static Weight sum_weight(const float* w, const int8_t*, size_t i, size_t k) {
    const float sum = w[i] + w[k];
    return weight(&sum, nullptr, 0);
  }
  static int32_t start_of(const int8_t*, int) { return 0; }

  static EK_INLINE void store(Element* to, __m512 y, float) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(y)); }
  static EK_INLINE void store_complex(Element* row, ptrdiff_t plane, __m512 re, __m512 im, float inv_scale, int) {
    store(row, re, inv_scale);
    store(row + plane, im, inv_scale);
    store(row + 2 * plane, V::zero() - im, inv_scale);
  }
};

}  // namespace

extern const Row avx512_bf16 = row_of<Bf16>("avx512_bf16", EK_BF16, 3, 0);

}  // namespace ek
