// f32 with AVX2 and FMA.
#include "avx2.h"
#include "f32.h"

namespace ek {

extern const Row avx2_f32 = f32_row<Vec8>("avx2_f32");

}  // namespace ek
