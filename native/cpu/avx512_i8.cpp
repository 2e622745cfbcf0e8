// int8 with AVX-512 VNNI.
#include "avx512.h"
#include "vnni.h"

namespace ek {
namespace {

struct Vec16Ints : Vec16 {
  using Ints = __m512i;
  static EK_INLINE Ints zero_ints() { return _mm512_setzero_si512(); }
  static EK_INLINE Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
  static EK_INLINE Ints load_ints(const void* x) { return _mm512_load_si512(x); }
  static EK_INLINE void store_ints(void* to, Ints x) { _mm512_store_si512(to, x); }
  static EK_INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static EK_INLINE Ints minus_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static EK_INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static EK_INLINE Ints dot(Ints sum, Ints u8, Ints s8) { return _mm512_dpbusd_epi32(sum, u8, s8); }
  static EK_INLINE __m128i to_bytes(Floats x) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)); }
  static EK_INLINE __m128i read_bytes(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static EK_INLINE void store_bytes(uint8_t* to, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x); }
};

}  // namespace

extern const Row avx512_i8 = row_of<Vnni<Vec16Ints>>("avx512_i8", EK_I8, 3, 128);

}  // namespace ek
