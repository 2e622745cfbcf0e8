// Weight files of random numbers, made here so that the tests need nothing else. The layout is that of edgekit/native_format.py.
#ifndef EK_TESTS_TINY_MODEL_H
#define EK_TESTS_TINY_MODEL_H

#include <cstdint>
#include <cstring>
#include <vector>

#include "stream/file.h"

namespace ek_test {

// Deterministic, so that a failing case can be run again.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 2 + 1) {}
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint32_t x = static_cast<uint32_t>(state >> 32);
    x ^= x >> 15;
    return x * 2654435769u ^ x >> 13;
  }
  uint32_t below(uint32_t n) { return bits() % n; }
  int between(int low, int high) { return low + static_cast<int>(below(static_cast<uint32_t>(high - low + 1))); }
  bool one_in(uint32_t n) { return below(n) == 0; }
  float uniform() { return static_cast<float>(static_cast<int32_t>(bits())) * (1.0f / 2147483648.0f); }
};

struct TinyModel {
  uint32_t format = ek::STORED_F32;
  uint32_t sample_rate = 16000, win = 16, hop = 4, n_fft = 16;
  uint32_t mask = 0, look_ahead = 1, is_gru = 0;
  std::vector<uint32_t> encoder = {2, 3};  // complex channels of every layer
  std::vector<uint32_t> decoder = {3, 2};  // of the projection and of every decoder layer but the last
  std::vector<uint32_t> hidden = {3, 2};
  bool sums_fit = true;  // int8 weights of a convolution's two frames add up to at most 127
  uint64_t seed = 1;
};

using Bytes = std::vector<unsigned char>;

inline void put_u32(Bytes* bytes, uint32_t value) {
  for (int i = 0; i < 4; i++) bytes->push_back(static_cast<unsigned char>(value >> (8 * i)));
}
inline void set_u32(Bytes* bytes, size_t at, uint32_t value) {
  for (size_t i = 0; i < 4; i++) (*bytes)[at + i] = static_cast<unsigned char>(value >> (8 * i));
}
inline void align(Bytes* bytes) { bytes->resize((bytes->size() + 63) / 64 * 64); }

// Makes total length and checksum say what the bytes are.
inline void seal(Bytes* bytes) {
  if (bytes->size() < 28) return;
  set_u32(bytes, 16, static_cast<uint32_t>(bytes->size()));
  set_u32(bytes, 20, 0);
  set_u32(bytes, 24, ek::crc32_of(bytes->data() + 28, bytes->size() - 28));
}

class Writer {
 public:
  Writer(const TinyModel& model, Bytes* bytes) : model_(model), bytes_(bytes), random_(model.seed) {}

  void floats(size_t n, float low, float high) {
    for (size_t i = 0; i < n; i++) {
      const float value = low + (high - low) * (0.5f + 0.5f * random_.uniform());
      uint32_t bits;
      memcpy(&bits, &value, 4);
      put_u32(bytes_, bits);
    }
    align(bytes_);
  }
  void weights(size_t n, float size, bool is_plain = false, int most = 127) {
    if (model_.format == ek::STORED_F32 || is_plain) {
      if (model_.format != ek::STORED_F16) return floats(n, -size, size);
    }
    for (size_t i = 0; i < n; i++) {
      if (model_.format == ek::STORED_I8) {
        bytes_->push_back(static_cast<unsigned char>(random_.between(-most, most)));
      } else {
        const uint32_t half = (random_.bits() & 0x83ff) | static_cast<uint32_t>(random_.between(9, 13)) << 10;  // up to 0.5
        bytes_->push_back(static_cast<unsigned char>(half));
        bytes_->push_back(static_cast<unsigned char>(half >> 8));
      }
    }
    align(bytes_);
  }
  void conv(uint32_t c_in, uint32_t c_out, bool is_plain) {
    // int8: gain holds the scales; about 1 / (127 * 127 * sqrt of the taps) brings sums back to unit size, then out_scale to 127.
    const bool is_int8 = model_.format == ek::STORED_I8 && !is_plain;
    weights(size_t{20} * c_in * c_out, 0.5f, is_plain, model_.sums_fit ? 63 : 127);
    const float gain = is_int8 ? 6e-5f : 1.0f;
    floats(size_t{2} * c_out, 0.5f * gain, gain);
    floats(size_t{2} * c_out, -0.2f, 0.2f);
    const float tail[2] = {0.25f, 1.0f / 64};
    scalars(tail, 2);
  }
  void net(uint32_t rows, uint32_t width, uint32_t hidden) {
    weights(size_t{rows} * width, 0.4f);
    weights(size_t{rows} * hidden, 0.4f);
    floats(rows, -0.3f, 0.3f);
    floats(rows, -0.3f, 0.3f);
    if (model_.format == ek::STORED_I8) floats(rows, 1e-5f, 1e-4f), floats(rows, 1e-5f, 1e-4f);
  }
  void dense(uint32_t rows, uint32_t width) {
    weights(size_t{rows} * width, 0.8f);
    floats(rows, -0.3f, 0.3f);
    if (model_.format == ek::STORED_I8) floats(rows, 1e-5f, 1e-4f);
  }
  void scalars(const float* values, size_t n) {
    for (size_t i = 0; i < n; i++) {
      uint32_t bits;
      memcpy(&bits, values + i, 4);
      put_u32(bytes_, bits);
    }
    align(bytes_);
  }

 private:
  const TinyModel& model_;
  Bytes* bytes_;
  Random random_;
};

inline Bytes make_model(const TinyModel& model) {
  const uint32_t depth = static_cast<uint32_t>(model.encoder.size()), frequencies = model.n_fft / 2 >> depth;
  Bytes bytes;
  for (char c : {'E', 'K', 'D', 'C', 'C', 'R', 'N', '\0'}) bytes.push_back(static_cast<unsigned char>(c));
  const uint32_t numbers = 2 * (depth + 1) + static_cast<uint32_t>(model.hidden.size());
  for (uint32_t value : {1u, (80 + 4 * numbers + 63) / 64 * 64, 0u, 0u, 0u, model.format, model.sample_rate, model.win, model.hop, model.n_fft, 5u, 2u, 2u, depth, model.mask,
                         model.look_ahead, model.is_gru, static_cast<uint32_t>(model.hidden.size())})
    put_u32(&bytes, value);
  put_u32(&bytes, 1);
  for (uint32_t c : model.encoder) put_u32(&bytes, c);
  for (uint32_t c : model.decoder) put_u32(&bytes, c);
  put_u32(&bytes, 1);
  for (uint32_t h : model.hidden) put_u32(&bytes, h);
  align(&bytes);

  Writer writer(model, &bytes);
  const float rnn_scale = 1.0f / 64, frame_scale = 1.0f / 64;
  for (uint32_t i = 0; i < depth; i++) writer.conv(i ? model.encoder[i - 1] : 1, model.encoder[i], i == 0);
  uint32_t width = model.encoder.back() * frequencies;
  for (uint32_t h : model.hidden) {
    for (int part = 0; part < 2; part++) writer.net((model.is_gru ? 3 : 4) * h, width, h);
    writer.scalars(&rnn_scale, 1);
    width = h;
  }
  for (int part = 0; part < 2; part++) writer.dense(model.decoder[0] * frequencies, width);
  writer.scalars(&frame_scale, 1);
  for (uint32_t j = 0; j < depth; j++) writer.conv(model.decoder[j] + model.encoder[depth - 1 - j], j + 1 < depth ? model.decoder[j + 1] : 1, j + 1 == depth);
  seal(&bytes);
  return bytes;
}

}  // namespace ek_test
#endif
