#include "spectrum.h"

#include <algorithm>
#include <cmath>

#include "stop.h"

namespace ek {
namespace {

using Row = std::vector<double>;

int64_t bins_of(const Stft& s) { return s.n_fft / 2; }
int64_t pad_of(const Stft& s) { return s.win_length - s.hop_length; }
int64_t frames_of(const Stft& s, int64_t samples) { return (samples + 2 * pad_of(s) - s.win_length) / s.hop_length + 1; }

// Periodic Hann.
Row window_of(const Stft& s) {
  Row window(static_cast<size_t>(s.win_length));
  for (size_t i = 0; i < window.size(); i++) window[i] = 0.5 - 0.5 * std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(s.win_length));
  return window;
}

// cos and sin of 2 pi i / n_fft. A transform takes angle (k * n) mod n_fft from here: a sum of products, whatever n_fft is.
struct Circle {
  explicit Circle(int64_t n) : cos(static_cast<size_t>(n)), sin(static_cast<size_t>(n)) {
    for (size_t i = 0; i < cos.size(); i++) {
      const double angle = 2 * M_PI * static_cast<double>(i) / static_cast<double>(n);
      cos[i] = std::cos(angle);
      sin[i] = std::sin(angle);
    }
  }
  Row cos, sin;
};

void check(const Stft& s) {
  if (s.win_length < 1 || s.hop_length < 1 || s.hop_length > s.win_length || s.win_length > s.n_fft || s.n_fft > 16384 || s.n_fft % 2 || s.delay < 0 || s.chunk < 0) {
    throw Stop(kUsage, "flow: a transform of window " + std::to_string(s.win_length) + ", hop " + std::to_string(s.hop_length) + ", size " + std::to_string(s.n_fft) + " cannot be");
  }
}

// Where bin k of part p (0 real, 1 imaginary) of frame t lies.
size_t place(const Stft& s, int64_t t, int64_t p, int64_t k) {
  const int64_t bins = bins_of(s);
  if (!s.chunk) return static_cast<size_t>((t * 2 + p) * bins + k);
  return static_cast<size_t>((((t / s.chunk) * 2 + p) * bins + k) * s.chunk + t % s.chunk);
}

int64_t frames_in(const Stft& s, const Tensor& tensor, const char* what) {
  const Shape& shape = tensor.shape;
  const bool fits = s.chunk ? shape.size() == 4 && shape[1] == 2 && shape[2] == bins_of(s) && shape[3] == s.chunk
                            : shape.size() == 3 && shape[1] == 2 && shape[2] == bins_of(s);
  if (!fits) throw Stop(kUsage, std::string("flow: ") + what + " has shape " + to_text(shape));
  return shape[0] * std::max<int64_t>(s.chunk, 1);
}

}  // namespace

Tensor spectrum_of(const Stft& s, const Tensor& wave) {
  check(s);
  if (wave.shape.size() != 1) throw Stop(kUsage, "flow: a transform of shape " + to_text(wave.shape) + ", expected samples");
  const int64_t samples = wave.shape[0], bins = bins_of(s);
  int64_t frames = frames_of(s, samples) + s.delay;
  if (s.chunk) frames = (frames + s.chunk - 1) / s.chunk * s.chunk;  // the last chunk is filled up with silence
  Tensor made;
  made.shape = s.chunk ? Shape{frames / s.chunk, 2, bins, s.chunk} : Shape{frames, 2, bins};
  made.values.resize(static_cast<size_t>(frames * 2 * bins));
  const Row window = window_of(s);
  const Circle circle(s.n_fft);
  Row cut(window.size());
  for (int64_t t = 0; t < frames; t++) {
    for (int64_t n = 0; n < s.win_length; n++) {
      const int64_t at = t * s.hop_length + n - pad_of(s);
      const size_t i = static_cast<size_t>(n);
      cut[i] = at >= 0 && at < samples ? wave.values[static_cast<size_t>(at)] * window[i] : 0;
    }
    for (int64_t k = 1; k <= bins; k++) {
      double real = 0, imaginary = 0;
      size_t angle = 0;
      for (const double x : cut) {
        real += x * circle.cos[angle];
        imaginary -= x * circle.sin[angle];
        angle = (angle + static_cast<size_t>(k)) % static_cast<size_t>(s.n_fft);
      }
      made.values[place(s, t, 0, k - 1)] = static_cast<float>(real);
      made.values[place(s, t, 1, k - 1)] = static_cast<float>(imaginary);
    }
  }
  return made;
}

Tensor wave_of(const Stft& s, const Tensor& spectrum, const Tensor& masks, char kind, int64_t samples) {
  check(s);
  const int64_t frames = frames_of(s, samples), bins = bins_of(s);
  if (frames < 1 || frames_in(s, spectrum, "a spectrum") < frames || frames_in(s, masks, "masks") < frames + s.delay) {
    throw Stop(kUsage, "flow: too few frames for " + std::to_string(samples) + " samples");
  }
  const double half = static_cast<double>(s.n_fft) / 2;
  const Row window = window_of(s);
  const Circle circle(s.n_fft);
  const size_t length = static_cast<size_t>((frames - 1) * s.hop_length + s.win_length);
  Row wave(length), weight(length), real(static_cast<size_t>(bins)), imaginary(real.size()), v(window.size());
  for (int64_t t = 0; t < frames; t++) {
    for (int64_t k = 0; k < bins; k++) {
      const double xr = spectrum.values[place(s, t, 0, k)], xi = spectrum.values[place(s, t, 1, k)];
      double mr = masks.values[place(s, t + s.delay, 0, k)], mi = masks.values[place(s, t + s.delay, 1, k)];
      const size_t i = static_cast<size_t>(k);
      if (kind == 'R') {
        real[i] = xr * mr;
        imaginary[i] = xi * mi;
        continue;
      }
      if (kind == 'E') {
        const double size = std::max(std::hypot(mr, mi), 1e-12), gain = std::tanh(size) / size;
        mr *= gain;
        mi *= gain;
      }
      real[i] = xr * mr - xi * mi;
      imaginary[i] = xr * mi + xi * mr;
    }
    // The pseudo-inverse of the DFT matrix: see edgekit/spectrum.py.
    double sum[2] = {0, 0};
    for (size_t n = 0; n < v.size(); n++) {
      size_t angle = 0;
      v[n] = 0;
      for (size_t k = 0; k < real.size(); k++) {
        angle = (angle + n) % static_cast<size_t>(s.n_fft);
        v[n] += real[k] * circle.cos[angle] - imaginary[k] * circle.sin[angle];
      }
      sum[n % 2] += v[n];
    }
    for (size_t n = 0; n < v.size(); n++) {
      const double same_parity = static_cast<double>((v.size() + 1 - n % 2) / 2);
      const size_t at = static_cast<size_t>(t * s.hop_length) + n;
      wave[at] += (v[n] - sum[n % 2] / (half + same_parity)) * window[n] / half;
      weight[at] += window[n] * window[n];
    }
  }
  Tensor made{{samples}, std::vector<float>(static_cast<size_t>(samples))};
  for (size_t i = 0; i < made.values.size(); i++) {
    const size_t at = i + static_cast<size_t>(pad_of(s));
    const double x = at < length ? wave[at] / (weight[at] + 1e-8) : 0;
    made.values[i] = static_cast<float>(std::min(1.0, std::max(-1.0, x)));
  }
  return made;
}

}  // namespace ek
