// A weight file through the reader, the plan and the CPU emulation, for tests that compare with a torch model.
//
//   from_file model.ekd spectra.f32 masks.f32 STREAMS fp32|fp16 PROCESSORS
//
// spectra.f32: [frames][streams][2][bins]; masks.f32: the same, written, frame for frame as a GPU would give them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/load.h"
#include "emulate.h"

namespace {

std::vector<unsigned char> read_all(const char* path) {
  std::vector<unsigned char> bytes;
  FILE* file = std::fopen(path, "rb");
  if (!file) return bytes;
  unsigned char block[65536];
  for (size_t n; (n = std::fread(block, 1, sizeof block, file)) > 0;) bytes.insert(bytes.end(), block, block + n);
  std::fclose(file);
  return bytes;
}

int stop(const char* text) {
  std::fprintf(stderr, "%s\n", text);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace ek::cuda;
  if (argc != 7) return stop("usage: from_file model.ekd spectra.f32 masks.f32 STREAMS fp32|fp16 PROCESSORS");
  const std::vector<unsigned char> bytes = read_all(argv[1]), spectra = read_all(argv[2]);
  ek::WeightFile file;
  if (ek::read_weight_file(bytes.data(), bytes.size(), &file)) return stop(ek_last_message());
  Model model;
  if (load(file, &model)) return stop(ek_last_message());
  PlanOptions options;
  options.streams = std::atoi(argv[4]);
  options.half = std::strcmp(argv[5], "fp16") == 0;
  options.processors = std::atoi(argv[6]);
  Plan plan;
  std::string why;
  if (!make_plan(model, options, &plan, &why)) return stop(why.c_str());
  const size_t numbers = static_cast<size_t>(options.streams) * 2 * plan.bins, frames = spectra.size() / (numbers * sizeof(float));
  std::vector<float> spectrum(numbers), mask(numbers);
  std::vector<unsigned char> memory(plan.state_bytes() + 256);
  void* states = reinterpret_cast<void*>((reinterpret_cast<size_t>(memory.data()) + 255) / 256 * 256);
  unsigned bad_values = 0;
  FILE* out = std::fopen(argv[3], "wb");
  if (!out) return stop("the masks cannot be written");
  for (size_t t = 0; t < frames; ++t) {
    std::memcpy(spectrum.data(), spectra.data() + t * numbers * sizeof(float), numbers * sizeof(float));
    const Memory at{plan.weights.data(), states, spectrum.data(), mask.data(), &bad_values, nullptr};
    for (const Node& node : bind(plan, at, static_cast<unsigned>(t) % plan.period)) emulate(node);
    std::fwrite(mask.data(), sizeof(float), numbers, out);
  }
  std::printf("{\"nodes\": %zu, \"frames\": %zu, \"bad_values\": %u}\n", plan.nodes.size(), frames, bad_values);
  return std::fclose(out) ? stop("the masks cannot be written") : 0;
}
