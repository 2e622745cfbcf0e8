// int8 with AVX-VNNI: dpbusd on 256 bits, for CPUs that have it without AVX-512 (Alder Lake and N-series, Zen 5).
#pragma GCC target("avxvnni")
#include "avx2.h"
#include "vnni.h"

namespace ek {
namespace {

struct Vec8Ints : Vec8 {
  using Ints = __m256i;
  static Cut cut_of(int) { return Cut{1, 4}; }  // three planes to spread: 12 sums would leave no registers
  static EK_INLINE Ints zero_ints() { return _mm256_setzero_si256(); }
  static EK_INLINE Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
  static EK_INLINE Ints load_ints(const void* x) { return _mm256_load_si256(static_cast<const __m256i*>(x)); }
  static EK_INLINE void store_ints(void* to, Ints x) { _mm256_store_si256(static_cast<__m256i*>(to), x); }
  static EK_INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static EK_INLINE Ints minus_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static EK_INLINE Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
  static EK_INLINE Ints dot(Ints sum, Ints u8, Ints s8) { return _mm256_dpbusd_avx_epi32(sum, u8, s8); }
  static EK_INLINE __m128i to_bytes(Floats x) {  // in the low 8 bytes
    const __m256i q = _mm256_cvtps_epi32(x);
    return _mm_packs_epi16(_mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)), _mm_setzero_si128());
  }
  static EK_INLINE __m128i read_bytes(const uint8_t* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
  static EK_INLINE void store_bytes(uint8_t* to, __m128i x) { _mm_storel_epi64(reinterpret_cast<__m128i*>(to), x); }
};

}  // namespace

extern const Row avx2_vnni_i8 = row_of<Vnni<Vec8Ints>>("avx2_vnni_i8", EK_I8, 3, 128);

}  // namespace ek
