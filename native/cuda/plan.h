// The host's side of a frame step, without CUDA: which kernels run with which arguments, how weights are packed and where states lie.
// The engine (engine.cu) copies the arenas to the device and captures the nodes in a graph; the tests run the same nodes on the CPU.
#ifndef EK_CUDA_PLAN_H
#define EK_CUDA_PLAN_H

#include <cstddef>
#include <string>
#include <vector>

#include "indexing.h"
#include "model.h"

namespace ek {
namespace cuda {

struct PlanOptions {
  int streams = 1;
  bool half = false;     // fp16 weights and activations; the first layer's, sums and recurrent states stay fp32
  int processors = 8;    // multiprocessors of the GPU; only the way work is cut depends on it
};

// Which instance of a kernel: number formats (half or not), product of parts, channels and columns of a thread.
struct Variant {
  bool half_in, half_out, parts;
  int ct, nt;
};

enum class What { intake, conv, recurrent };

// One kernel launch. Pointers in the arguments are null until bind(); what they will be is in the offsets.
struct Node {
  What what;
  std::string name;      // "encoder 3", for messages and tables
  Variant variant{};
  int blocks = 0;
  Intake intake{};
  Conv conv{};
  Recurrent recurrent{};
  size_t source_at[kSources] = {0, 0};   // in the state arena
  size_t target_at = 0;                  // in the state arena, unless it is the mask
  bool to_mask = false;
  size_t h_at = 0, c_at = 0;             // in the state arena
  size_t weights_at[2] = {0, 0}, gain_at = 0, bias_at = 0;  // in the weight arena
  double cycles = 0;     // what the cut was chosen by: an estimate, only good for comparing cuts
};

struct Plan {
  PlanOptions options;
  int bins = 0, delay = 0;               // frames by which the mask lags
  unsigned period = 1;                   // frames after which the arguments repeat
  std::vector<Node> nodes;
  std::vector<unsigned char> weights;    // arena
  size_t stream_bytes = 0;               // states of one stream, contiguous; all zeros at the start
  double macs = 0;                       // real multiplications of a frame of one stream
  size_t state_bytes() const { return stream_bytes * static_cast<size_t>(options.streams); }
};

// Null and a sentence in `why` where the model or the options cannot be.
bool make_plan(const Model& model, const PlanOptions& options, Plan* plan, std::string* why);

struct Memory {
  void* weights;
  void* states;
  const float* spectrum;   // [streams][2][bins]
  float* mask;             // [streams][2][bins]
  unsigned* bad_values;
  const int* past;         // [streams] or null, see Conv
};
// The nodes of frame number `frame` with their pointers.
std::vector<Node> bind(const Plan& plan, const Memory& memory, unsigned frame);

// Launch shape of a convolution on a whole tensor; sets p->chunk. False: more kernel taps than shared memory holds.
bool plan_tensor(Tensor* p, int* ct, int* blocks_x, int* blocks_y);

}  // namespace cuda
}  // namespace ek
#endif
