// f32 with AVX2 and FMA.
#include "avx2.h"
#include "f32.h"

namespace ek {

extern const Row avx2_f32 = row_of<F32<Vec8>>("avx2_f32", EK_F32, 2, 0);

}  // namespace ek
