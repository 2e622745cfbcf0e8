// RIFF WAVE files of one channel, 16-bit PCM or 32-bit float, from and to memory. No length in a file is trusted.
#ifndef EK_TOOLS_WAV_H
#define EK_TOOLS_WAV_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace ek_wav {

struct Wav {
  uint32_t rate_hz = 0;
  bool is_float = false;
  std::vector<float> samples;
};

inline uint32_t u16_at(const unsigned char* p) { return static_cast<uint32_t>(p[0] | p[1] << 8); }
inline uint32_t u32_at(const unsigned char* p) { return u16_at(p) | u16_at(p + 2) << 16; }

// "" or what is wrong with the file.
inline std::string read_wav(const unsigned char* bytes, size_t n, Wav* wav) {
  constexpr uint32_t kPcm = 1, kFloat = 3, kExtensible = 0xfffe, kUnknownLength = 0xffffffffu;
  if (n < 12 || memcmp(bytes, "RIFF", 4) != 0 || memcmp(bytes + 8, "WAVE", 4) != 0) return "not a RIFF WAVE file";
  uint32_t kind = 0, channels = 0, bits = 0;
  for (size_t at = 12; n - at >= 8;) {
    const unsigned char* chunk = bytes + at + 8;
    const uint32_t said = u32_at(bytes + at + 4);
    const size_t left = n - at - 8;
    const bool is_data = memcmp(bytes + at, "data", 4) == 0;
    // A program that writes into a pipe does not know its data's length and says the largest there is.
    const size_t size = is_data && said == kUnknownLength ? left : said;
    if (size > left) return "a chunk says that it has " + std::to_string(said) + " bytes, " + std::to_string(left) + " are left: is the file truncated?";
    if (memcmp(bytes + at, "fmt ", 4) == 0) {
      if (size < 16) return "the format chunk is too short";
      kind = u16_at(chunk);
      channels = u16_at(chunk + 2);
      wav->rate_hz = u32_at(chunk + 4);
      bits = u16_at(chunk + 14);
      if (kind == kExtensible && size >= 26) kind = u16_at(chunk + 24);
    } else if (is_data) {
      if (channels == 0) return "the data come before their format";
      if (channels != 1) return "the file has " + std::to_string(channels) + " channels; one is denoised at a time, so split or mix it first";
      const size_t width = kind == kPcm && bits == 16 ? 2 : kind == kFloat && bits == 32 ? 4 : 0;
      if (!width) return "the samples are of format " + std::to_string(kind) + " with " + std::to_string(bits) + " bits; 16-bit PCM and 32-bit float are read";
      wav->is_float = width == 4;
      wav->samples.resize(size / width);
      for (size_t i = 0; i < wav->samples.size(); i++) {
        if (width == 2) {
          wav->samples[i] = static_cast<float>(static_cast<int16_t>(u16_at(chunk + 2 * i))) * (1.0f / 32768.0f);
        } else {
          const uint32_t value = u32_at(chunk + 4 * i);
          memcpy(&wav->samples[i], &value, 4);
        }
      }
      return "";
    }
    const size_t step = size + (size & 1);  // chunks begin at even places
    if (step > left) break;
    at += 8 + step;
  }
  return "the file has no data";
}

// Of the same kind as what was read. 16-bit PCM is rounded, not dithered.
inline std::vector<unsigned char> write_wav(const Wav& wav) {
  const uint32_t width = wav.is_float ? 4 : 2, data = static_cast<uint32_t>(wav.samples.size()) * width;
  std::vector<unsigned char> bytes;
  bytes.reserve(44 + data);
  const auto text = [&](const char* four) { bytes.insert(bytes.end(), four, four + 4); };
  const auto number = [&](uint32_t value, int n) {
    for (int i = 0; i < n; i++) bytes.push_back(static_cast<unsigned char>(value >> (8 * i)));
  };
  text("RIFF"), number(36 + data, 4), text("WAVE"), text("fmt "), number(16, 4);
  number(wav.is_float ? 3 : 1, 2), number(1, 2), number(wav.rate_hz, 4), number(wav.rate_hz * width, 4), number(width, 2), number(8 * width, 2);
  text("data"), number(data, 4);
  for (float sample : wav.samples) {
    if (wav.is_float) {
      uint32_t value;
      memcpy(&value, &sample, 4);
      number(value, 4);
    } else {
      const float scaled = std::nearbyint(sample * 32768.0f);
      number(static_cast<uint32_t>(static_cast<int>(scaled > 32767.0f ? 32767.0f : scaled < -32768.0f ? -32768.0f : scaled)), 2);
    }
  }
  return bytes;
}

}  // namespace ek_wav
#endif
