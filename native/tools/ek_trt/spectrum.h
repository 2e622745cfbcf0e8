// Short-time spectra before and after a denoiser, as edgekit/spectrum.py defines them; float64 inside.
#ifndef EK_TRT_SPECTRUM_H
#define EK_TRT_SPECTRUM_H

#include "npy.h"

namespace ek {

struct Stft {
  int64_t win_length, hop_length, n_fft;
  int64_t delay;  // frames that the masks come late
  int64_t chunk;  // frames a run of the network; 0: one, without an axis of its own
};

// [samples] -> [frames + delay, 2, n_fft/2], real and imaginary parts without DC; with chunk [chunks, 2, n_fft/2, chunk].
Tensor spectrum_of(const Stft& sizes, const Tensor& wave);

// The spectrum under its masks, of kind 'E', 'C' or 'R', as a wave [samples] within +-1.
Tensor wave_of(const Stft& sizes, const Tensor& spectrum, const Tensor& masks, char kind, int64_t samples);

}  // namespace ek
#endif
