// f32 with AVX-512.
#include "avx512.h"
#include "f32.h"

namespace ek {

extern const Row avx512_f32 = f32_row<Vec16>("avx512_f32");

}  // namespace ek
