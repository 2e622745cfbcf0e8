// A weight file as it lies in memory: every number checked, every tensor found. The format is described in edgekit/native_format.py.
#ifndef EK_STREAM_FILE_H
#define EK_STREAM_FILE_H

#include <cstddef>
#include <cstdint>

#include "edgekit/edgekit.h"

namespace ek {

enum StoredFormat : uint32_t { STORED_F32 = 0, STORED_F16 = 1, STORED_I8 = 3 };
enum MaskKind : uint32_t { MASK_E = 0, MASK_C = 1, MASK_R = 2 };

constexpr int kKernelF = 5, kKernelT = 2, kStrideF = 2;
constexpr int kMaxFft = 4096, kMaxFrequencies = kMaxFft / 2 / 4;  // at the bottleneck: the depth is at least 2
constexpr int kMaxFeatures = 32768;  // of the recurrent input: 255 * 127 * this still fits an int32 sum

struct Shape {
  int sample_rate_hz, win_length, hop_length, n_fft;
  int depth, rnn_layers;
  MaskKind mask;
  bool look_ahead, is_gru;
  int c_enc[EK_MAX_DEPTH + 1], c_dec[EK_MAX_DEPTH + 1], hidden[EK_MAX_RECURRENT];

  int bins() const { return n_fft / 2; }
  int frequencies(int layer) const { return bins() >> layer; }  // behind encoder layer `layer` (0: the input)
  int features() const { return c_enc[depth] * frequencies(depth); }
  int gates() const { return is_gru ? 3 : 4; }
  int delay() const { return look_ahead ? depth : 0; }  // frames by which a mask comes late
};

// `count` numbers of one stored kind. Aligned to 64 bytes within the file, but the file may lie anywhere: read with at().
struct Tensor {
  const unsigned char* bytes = nullptr;
  size_t count = 0;
  StoredFormat kind = STORED_F32;

  float at(size_t i) const;
  int8_t int8_at(size_t i) const { return static_cast<int8_t>(bytes[i]); }
};

struct ConvTensors {
  Tensor weight, gain, bias;
  float slope, out_scale;
};
struct NetTensors {
  Tensor w_x, w_h, b_x, b_h, scale_x, scale_h;
};
struct RecurrentTensors {
  NetTensors net[2];
  float out_scale;
};
struct DenseTensors {
  Tensor weight, bias, scale;
};

struct WeightFile {
  Shape shape;
  StoredFormat format;
  uint32_t crc32;
  uint64_t bytes;
  uint64_t parameters;
  ConvTensors encoder[EK_MAX_DEPTH], decoder[EK_MAX_DEPTH];
  RecurrentTensors recurrent[EK_MAX_RECURRENT];
  DenseTensors projection[2];
  float projection_scale;
};

// Finds and checks everything; the tensors point into `bytes`.
ek_status read_weight_file(const void* bytes, size_t n, WeightFile* file);

uint32_t crc32_of(const void* bytes, size_t n);

// A file's bytes, mapped for as long as this lives.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  ek_status open(const char* path);
  const void* bytes() const { return bytes_; }
  size_t size() const { return size_; }

 private:
  void* bytes_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ek
#endif
