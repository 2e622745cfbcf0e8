// f32 with AVX-512: four multiplications per complex product, or Gauss's three where that pays.
#include "avx512.h"
#include "f32.h"

namespace ek {

extern const Row avx512_f32 = row_of<F32<Vec16>>("avx512_f32", EK_F32, 2, 0);

}  // namespace ek
