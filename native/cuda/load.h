// From the parsed weight file to the numbers that a plan packs.
#ifndef EK_CUDA_LOAD_H
#define EK_CUDA_LOAD_H

#include "cuda/model.h"
#include "edgekit/edgekit.h"
#include "stream/file.h"

namespace ek {
namespace cuda {

// EK_UNSUPPORTED for an int8 file.
ek_status load(const WeightFile& file, Model* model);

}  // namespace cuda
}  // namespace ek
#endif
