// A folder of clips: <clip>/<tensor>.npy, and <clip>/decode.txt where tensors are stored as integers.
#ifndef EK_TRT_CLIPS_H
#define EK_TRT_CLIPS_H

#include <string>
#include <vector>

#include "engine.h"
#include "flow.h"

namespace ek {

// Names of the clips, sorted; at least one. Throws kDamaged.
std::vector<std::string> list_clips(const std::string& folder);

// The tensors of a clip, float32 in the shapes of `ports`, no other file beside them.
//
// float32 files are taken as they are. Integer files (frames as uint8, sound as int16) are decoded by a line of decode.txt,
//     TENSOR  INNER  MEAN,MEAN,..  GAIN,GAIN,..
// element i becomes float32((x[i] - MEAN[c]) * GAIN[c]) with c = (i / INNER) mod the number of GAINs. Where an integer file is shorter
// than the port, zeros follow: sound is padded after it was normalized.
Tensors read_clip(const std::string& folder, const std::vector<Port>& ports);

}  // namespace ek
#endif
