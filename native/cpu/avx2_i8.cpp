// int8 with AVX2. maddubs, which multiplies bytes, saturates its 16-bit sums; so activations are stored as 16-bit numbers and weights are
// widened when loaded: madd adds two 16 x 16-bit products in 32 bits, which cannot overflow. No offset, no third plane.
#include "avx2.h"

namespace ek {
namespace {

struct I8 {
  using V = Vec8;
  using Element = int16_t;
  using Weight = int8_t;
  using Weights = __m256i;
  using Sum = __m256i;
  struct Input {
    __m256i re, im;
  };

  // 16 bits hold every sum of two weights and every change.
  static constexpr bool kStoresSum = false;
  static EK_INLINE Weights load_sum(const char* w, size_t half) { return _mm256_add_epi16(load(w), load(w + half)); }
  static EK_INLINE Sum kept(const float* at, const int32_t*) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(at)); }
  static EK_INLINE void keep(float* at, Sum sum) { _mm256_store_si256(reinterpret_cast<__m256i*>(at), sum); }
  static EK_INLINE Sum negative(Sum sum) { return _mm256_sub_epi32(zero(), sum); }
  static EK_INLINE Sum minus(const int32_t*, Sum sum) { return negative(sum); }
  static int planes(int) { return 2; }
  static EK_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static EK_INLINE __m256 to_float(Sum sum) { return _mm256_cvtepi32_ps(sum); }
  static EK_INLINE __m256 scaled(Sum sum, const float* scale, const float* bias) { return to_float(sum) * V::load(scale) + V::load(bias); }

  static EK_INLINE __m256i spread(const char* x) {
    int32_t two;
    __builtin_memcpy(&two, x, 4);
    return _mm256_set1_epi32(two);
  }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane)}; }
  static EK_INLINE Weights load(const char* w) { return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w))); }
  static EK_INLINE Sum dot(Sum sum, Weights w, __m256i x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
  static EK_INLINE void multiply(Sum& re, Sum& im, Weights w_re, Weights w_im, const Input& x) {
    re = dot(re, w_re, x.re);
    im = dot(im, w_re, x.im);
    re = _mm256_sub_epi32(re, _mm256_madd_epi16(w_im, x.im));
    im = dot(im, w_im, x.re);
  }

  static Weight weight(const float*, const int8_t* q, size_t i) { return q[i]; }
  static Weight sum_weight(const float*, const int8_t* q, size_t i, size_t k) { return static_cast<int8_t>(q[i] + q[k]); }
  static int32_t start_of(const int8_t*, int) { return 0; }

  static EK_INLINE void store(Element* to, __m256 y, float inv_scale) {
    const __m256i q = quantize(y, inv_scale);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)));
  }
  static EK_INLINE void store_complex(Element* row, ptrdiff_t plane, __m256 re, __m256 im, float inv_scale, int) {
    store(row, re, inv_scale);
    store(row + plane, im, inv_scale);
  }
  static EK_INLINE bool write_change(const Element* now, const Element* before, Element* change, ptrdiff_t plane, int) {
    const auto read = [](const Element* x) EK_INLINE_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); };
    _mm_storeu_si128(reinterpret_cast<__m128i*>(change), _mm_sub_epi16(read(now), read(before)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(change + plane), _mm_sub_epi16(read(now + plane), read(before + plane)));
    return true;
  }
};

}  // namespace

extern const Row avx2_i8 = row_of<I8>("avx2_i8", EK_I8, 2, 0);

}  // namespace ek
