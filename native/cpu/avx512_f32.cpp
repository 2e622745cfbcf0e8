// f32 with AVX-512: four multiplications per complex product, or Gauss's three where that pays.
//
// Gauss: s = Wr (xr + xi), im = s + (Wi - Wr) xr, re = s - (Wr + Wi) xi, in three passes over the taps, each with its own weights and one
// plane of the frame. One pass with three sums per output needs more registers than there are. Frames then hold re + im as third plane.
#include "avx512.h"

namespace ek {
namespace {

struct F32 {
  using Element = float;
  using Sum = __m512;
  struct Input {
    __m512 re, im;
  };
  static constexpr int kElementBytes = 4;

  static EK_INLINE int planes(int algorithm) { return algorithm == EK_GAUSS ? 3 : 2; }
  static EK_INLINE Sum zero() { return _mm512_setzero_ps(); }
  static EK_INLINE Sum start_at(const int32_t*) { return zero(); }
  static EK_INLINE Sum start(const Conv*, int) { return zero(); }
  static EK_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static EK_INLINE __m512 to_float(Sum sum) { return sum; }
  static EK_INLINE __m512 scaled(Sum sum, const float*, const float* bias) { return _mm512_add_ps(sum, _mm512_loadu_ps(bias)); }

  static EK_INLINE __m512 spread_float(const char* x) {
    float one;
    __builtin_memcpy(&one, x, 4);
    return _mm512_set1_ps(one);
  }
  static EK_INLINE __m512i spread(const char* x) { return _mm512_castps_si512(spread_float(x)); }
  static EK_INLINE Input input(const char* x, ptrdiff_t plane) { return {spread_float(x), spread_float(x + plane)}; }
  static EK_INLINE Sum dot(Sum sum, __m512i w, __m512i x) { return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum); }
  static EK_INLINE void multiply(Sum& re, Sum& im, __m512i w_re, __m512i w_im, const Input& x) {
    const __m512 wr = _mm512_castsi512_ps(w_re), wi = _mm512_castsi512_ps(w_im);
    re = _mm512_fmadd_ps(wr, x.re, re);
    im = _mm512_fmadd_ps(wr, x.im, im);
    re = _mm512_fnmadd_ps(wi, x.im, re);
    im = _mm512_fmadd_ps(wi, x.re, im);
  }

  static Element weight(const float* w, const int8_t*, size_t i) { return w[i]; }
  static int32_t start_of(const int8_t*, int) { return 0; }
  static void pack_corrections(const ConvSpec*, int32_t* start, int c_out) {
    for (int o = 0; o < c_out; o++) start[o] = 0;
  }

  static EK_INLINE void store16(char* to, __m512 y, __m512) { _mm512_storeu_ps(to, y); }
  static EK_INLINE void store_complex(char* row, ptrdiff_t plane, __m512 re, __m512 im, __m512, int planes) {
    _mm512_storeu_ps(row, re);
    _mm512_storeu_ps(row + plane, im);
    if (planes == 3) _mm512_storeu_ps(row + 2 * plane, _mm512_add_ps(re, im));
  }
};

}  // namespace

extern const Row avx512_f32 = {"avx512_f32", EK_F32, 2, 0, 4,
                               conv_bytes<F32>, pack_conv<F32>, conv<F32>, cell_bytes<F32>, pack_cell<F32>, cell<F32>,
                               dense_bytes<F32>, pack_dense<F32>, dense<F32>, store<F32>, store_row<F32>, first<F32>, last};

}  // namespace ek
