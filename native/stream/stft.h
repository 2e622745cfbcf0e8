// Spectra of frames and back, as the reference's fixed convolutions make them, by a real FFT of a power of two.
#ifndef EK_STREAM_STFT_H
#define EK_STREAM_STFT_H

#include <cstddef>

#include "stream/file.h"
#include "stream/memory.h"

namespace ek {

class Stft {
 public:
  static size_t bytes(const Shape& shape);
  // Tables go into `arena`, which has bytes() left. They are only read afterwards: any number of threads may share a Stft.
  void prepare(const Shape& shape, Arena* arena);

  // Floats that the two functions below need as work space.
  size_t scratch() const { return 2 * static_cast<size_t>(n_); }
  // Samples [win] -> pairs [bins][re, im] of the bins 1 .. n_fft / 2.
  void analyse(const float* samples, float* pairs, float* scratch) const;
  // The same pairs, DC being zero -> windowed samples [win], to be overlapped and added.
  // The reference inverts with the pseudo-inverse of its kernel, whose bins all weigh the same; irfft weighs DC and Nyquist half.
  // So the two parities' means are drawn in: y = q - sum(q of one parity) / (n_fft / 2 + count of that parity).
  void synthesize(const float* pairs, float* samples, float* scratch) const;
  // 1 / (sum of squared windows over a hop [hop]) with all frames and with all but the newest.
  const float* full_norm() const { return norm_[0]; }
  const float* tail_norm() const { return norm_[1]; }

 private:
  // Complex FFT of n_ / 2 points from x to x; y is work space. All are [re | im].
  void transform(float* x_re, float* x_im, float* y_re, float* y_im) const;

  int n_ = 0, win_ = 0, hop_ = 0;
  float* window_ = nullptr;
  float* twiddles_ = nullptr;  // of every pass, [w1 re, w1 im, w2 re, w2 im, w3 re, w3 im][points of the pass]
  float* turn_re_ = nullptr;   // e^(-2 pi i k / n), k = 0 .. n / 2
  float* turn_im_ = nullptr;
  float* norm_[2] = {nullptr, nullptr};
};

// mask [2][bins] and spectrum pairs [bins][re, im] -> masked pairs.
void apply_mask(MaskKind kind, const float* mask, const float* spectrum, int bins, float* masked);

}  // namespace ek
#endif
