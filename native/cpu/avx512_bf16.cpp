// bf16 with AVX512_BF16: dpbf16 adds two products to an f32 sum. Frames have a third plane -imag, since there is no subtracting dpbf16.
#include "avx512.h"

namespace ek {
namespace {

struct Bf16 {
  using Element = uint16_t;
  using Sum = __m512;
  struct Input {
    __m512i re, im, minus_im;
  };
  static constexpr int kElementBytes = 2;

  static int planes(int) { return 3; }
  static EK_INLINE Sum zero() { return _mm512_setzero_ps(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum start(const Conv*, int) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static EK_INLINE __m512 to_float(Sum sum) { return sum; }
  static EK_INLINE __m512 scaled(Sum sum, const float*, const float* bias) { return _mm512_add_ps(sum, _mm512_loadu_ps(bias)); }

  static EK_INLINE __m512i spread(const char* x) {
    int32_t two;
    __builtin_memcpy(&two, x, 4);
    return _mm512_set1_epi32(two);
  }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread(x), spread(x + plane), spread(x + 2 * plane)}; }
  static EK_INLINE Sum dot(Sum sum, __m512i w, __m512i x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
  static EK_INLINE void multiply(Sum& re, Sum& im, __m512i w_re, __m512i w_im, const Input& x) {
    re = dot(re, w_re, x.re);
    im = dot(im, w_re, x.im);
    re = dot(re, w_im, x.minus_im);
    im = dot(im, w_im, x.re);
  }

  static Element weight(const float* w, const int8_t*, size_t i) { return static_cast<uint16_t>(_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(w[i])), 0)); }
  static int32_t start_of(const int8_t*, int) { return 0; }
  static void pack_corrections(const ConvSpec*, int32_t* start, int c_out) {
    for (int o = 0; o < c_out; o++) start[o] = 0;
  }

  static EK_INLINE void store16(char* to, __m512 y, __m512) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(y)); }
  static EK_INLINE void store_complex(char* row, ptrdiff_t plane, __m512 re, __m512 im, __m512, int) {
    const __m256i b_im = (__m256i)_mm512_cvtneps_pbh(im);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), (__m256i)_mm512_cvtneps_pbh(re));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + plane), b_im);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + 2 * plane), _mm256_xor_si256(b_im, _mm256_set1_epi16(-0x8000)));
  }
};

}  // namespace

extern const Row avx512_bf16 = {"avx512_bf16", EK_BF16, 3, 0, 2,
                                conv_bytes<Bf16>, pack_conv<Bf16>, conv<Bf16>, cell_bytes<Bf16>, pack_cell<Bf16>, cell<Bf16>,
                                dense_bytes<Bf16>, pack_dense<Bf16>, dense<Bf16>, store<Bf16>, store_row<Bf16>, first<Bf16>, last};

}  // namespace ek
