#include "stream/stft.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ek {
namespace {

constexpr double kTau = 6.283185307179586476925;

// One radix-4 pass of Stockham's FFT: m groups of s neighbours; x[q + s * (p + k m)], k = 0 .. 3 -> y[q + s * (4 p + k)].
void pass4(int m, int s, const float* w, const float* __restrict xr, const float* __restrict xi, float* __restrict yr, float* __restrict yi) {
  const size_t quarter = static_cast<size_t>(m) * s;
  for (int p = 0; p < m; p++) {
    const float w1r = w[p], w1i = w[m + p], w2r = w[2 * m + p], w2i = w[3 * m + p], w3r = w[4 * m + p], w3i = w[5 * m + p];
    const float* ar = xr + static_cast<size_t>(p) * s;
    const float* ai = xi + static_cast<size_t>(p) * s;
    float* br = yr + static_cast<size_t>(4 * p) * s;
    float* bi = yi + static_cast<size_t>(4 * p) * s;
    for (int q = 0; q < s; q++) {
      const float acr = ar[q] + ar[q + 2 * quarter], aci = ai[q] + ai[q + 2 * quarter];
      const float amr = ar[q] - ar[q + 2 * quarter], ami = ai[q] - ai[q + 2 * quarter];
      const float bdr = ar[q + quarter] + ar[q + 3 * quarter], bdi = ai[q + quarter] + ai[q + 3 * quarter];
      const float bmr = ar[q + quarter] - ar[q + 3 * quarter], bmi = ai[q + quarter] - ai[q + 3 * quarter];
      const float c1r = amr + bmi, c1i = ami - bmr, c2r = acr - bdr, c2i = aci - bdi, c3r = amr - bmi, c3i = ami + bmr;
      br[q] = acr + bdr;
      bi[q] = aci + bdi;
      br[q + s] = w1r * c1r - w1i * c1i;
      bi[q + s] = w1r * c1i + w1i * c1r;
      br[q + 2 * s] = w2r * c2r - w2i * c2i;
      bi[q + 2 * s] = w2r * c2i + w2i * c2r;
      br[q + 3 * s] = w3r * c3r - w3i * c3i;
      bi[q + 3 * s] = w3r * c3i + w3i * c3r;
    }
  }
}

// e^x for x in -80 .. 0, to 1e-7 of itself; no calls, so that loops vectorize.
inline float exp_of(float x) {
  const float n = static_cast<float>(static_cast<int>(x * 1.44269504f - 0.5f));
  float f = x - n * 0.693359375f;
  f += n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const int bits = (static_cast<int>(n) + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

// tanh(m) / m for m >= 0: a series near 0, where the quotient would lose digits.
inline float tanh_over(float m) {
  const float m2 = m * m;
  const float near = 1.0f + m2 * (-0.333333333f + m2 * (0.133333333f + m2 * (-0.0539682540f + m2 * 0.0218694885f)));
  const float at_least = m > 0.1f ? m : 0.1f;
  const float e = exp_of(at_least < 40.0f ? -2.0f * at_least : -80.0f);
  const float far = (1.0f - e) / ((1.0f + e) * at_least);
  return m < 0.3f ? near : far;
}

}  // namespace

size_t Stft::bytes(const Shape& shape) {
  const size_t n = static_cast<size_t>(shape.n_fft);
  return Arena::padded(4 * static_cast<size_t>(shape.win_length)) + Arena::padded(4 * 4 * n) + 2 * Arena::padded(4 * (n / 2 + 1)) +
         2 * Arena::padded(4 * static_cast<size_t>(shape.hop_length));
}

void Stft::prepare(const Shape& shape, Arena* arena) {
  n_ = shape.n_fft;
  win_ = shape.win_length;
  hop_ = shape.hop_length;
  window_ = arena->take<float>(static_cast<size_t>(win_));
  twiddles_ = arena->take<float>(4 * static_cast<size_t>(n_));
  turn_re_ = arena->take<float>(static_cast<size_t>(n_ / 2 + 1));
  turn_im_ = arena->take<float>(static_cast<size_t>(n_ / 2 + 1));
  for (float*& norm : norm_) norm = arena->take<float>(static_cast<size_t>(hop_));

  for (int i = 0; i < win_; i++) window_[i] = static_cast<float>(0.5 - 0.5 * std::cos(kTau * i / win_));
  for (int i = 0; i < hop_; i++) {
    double sum = 0;
    for (int j = win_ - hop_ + i; j >= 0; j -= hop_) {
      sum += static_cast<double>(window_[j]) * static_cast<double>(window_[j]);
      // The newest frame is at its beginning here: j == i.
      if (j == i) norm_[1][i] = static_cast<float>(1.0 / (sum - static_cast<double>(window_[i]) * static_cast<double>(window_[i]) + 1e-8));
    }
    norm_[0][i] = static_cast<float>(1.0 / (sum + 1e-8));
  }
  for (int k = 0; k <= n_ / 2; k++) {
    turn_re_[k] = static_cast<float>(std::cos(kTau * k / n_));
    turn_im_[k] = static_cast<float>(-std::sin(kTau * k / n_));
  }
  float* w = twiddles_;
  for (int points = n_ / 2; points >= 4; points /= 4) {
    const int m = points / 4;
    for (int p = 0; p < m; p++) {
      for (int k = 1; k <= 3; k++) {
        w[(2 * k - 2) * m + p] = static_cast<float>(std::cos(kTau * k * p / points));
        w[(2 * k - 1) * m + p] = static_cast<float>(-std::sin(kTau * k * p / points));
      }
    }
    w += 6 * m;
  }
}

void Stft::transform(float* x_re, float* x_im, float* y_re, float* y_im) const {
  float *from_re = x_re, *from_im = x_im, *to_re = y_re, *to_im = y_im;
  const auto swap = [&] {
    float* t = from_re;
    from_re = to_re, to_re = t;
    t = from_im;
    from_im = to_im, to_im = t;
  };
  const float* w = twiddles_;
  int points = n_ / 2, s = 1;
  for (; points >= 4; points /= 4, s *= 4) {
    pass4(points / 4, s, w, from_re, from_im, to_re, to_im);
    w += 6 * (points / 4);
    swap();
  }
  if (points == 2) {
    for (int q = 0; q < s; q++) {
      to_re[q] = from_re[q] + from_re[q + s];
      to_im[q] = from_im[q] + from_im[q + s];
      to_re[q + s] = from_re[q] - from_re[q + s];
      to_im[q + s] = from_im[q] - from_im[q + s];
    }
    swap();
  }
  if (from_re != x_re) {
    memcpy(x_re, from_re, sizeof(float) * static_cast<size_t>(n_ / 2));
    memcpy(x_im, from_im, sizeof(float) * static_cast<size_t>(n_ / 2));
  }
}

void Stft::analyse(const float* samples, float* pairs, float* scratch) const {
  const int half = n_ / 2;
  float *re = scratch, *im = re + half, *work = im + half;
  for (int i = 0; i < half; i++) re[i] = im[i] = 0.0f;
  for (int i = 0; i < win_ / 2; i++) {
    re[i] = samples[2 * i] * window_[2 * i];
    im[i] = samples[2 * i + 1] * window_[2 * i + 1];
  }
  if (win_ % 2) re[win_ / 2] = samples[win_ - 1] * window_[win_ - 1];
  transform(re, im, work, work + half);
  // Even and odd samples were real and imaginary part; take them apart: X[k] = (Z[k] + Z*[h-k]) / 2 - i/2 e^(-2 pi i k / n) (Z[k] - Z*[h-k]).
  for (int k = 1; k <= half; k++) {
    const int a = k == half ? 0 : k, b = half - k;
    const float even_re = 0.5f * (re[a] + re[b]), even_im = 0.5f * (im[a] - im[b]);
    const float odd_re = 0.5f * (im[a] + im[b]), odd_im = 0.5f * (re[b] - re[a]);
    pairs[2 * (k - 1)] = even_re + turn_re_[k] * odd_re - turn_im_[k] * odd_im;
    pairs[2 * (k - 1) + 1] = even_im + turn_re_[k] * odd_im + turn_im_[k] * odd_re;
  }
}

void Stft::synthesize(const float* pairs, float* samples, float* scratch) const {
  const int half = n_ / 2;
  float *re = scratch, *im = re + half, *work = im + half;
  const float nyquist = pairs[2 * (half - 1)];
  // Z[k] = (X[k] + X*[h-k]) + i e^(2 pi i k / n) (X[k] - X*[h-k]), scaled so that the inverse gives q; X[0] = 0.
  const float scale = 1.0f / static_cast<float>(n_);
  re[0] = scale * nyquist;
  im[0] = -scale * nyquist;
  for (int k = 1; k < half; k++) {
    const float xr = pairs[2 * (k - 1)], xi = pairs[2 * (k - 1) + 1], yr = pairs[2 * (half - k - 1)], yi = -pairs[2 * (half - k - 1) + 1];
    const float dr = xr - yr, di = xi - yi;
    re[k] = scale * (xr + yr - (turn_re_[k] * di - turn_im_[k] * dr));
    im[k] = scale * (xi + yi + (turn_re_[k] * dr + turn_im_[k] * di));
  }
  transform(im, re, work + half, work);  // real and imaginary part swapped: the inverse

  // q also has the second halves of DC (none) and Nyquist, and without its parities' share it is the reference's frame.
  const float more = nyquist * scale;
  float sum[2] = {0.0f, 0.0f};
  for (int i = 0; i < win_ / 2; i++) {
    samples[2 * i] = re[i] + more;
    samples[2 * i + 1] = im[i] - more;
    sum[0] += samples[2 * i];
    sum[1] += samples[2 * i + 1];
  }
  if (win_ % 2) {
    samples[win_ - 1] = re[win_ / 2] + more;
    sum[0] += samples[win_ - 1];
  }
  const float share[2] = {sum[0] / static_cast<float>(half + (win_ + 1) / 2), sum[1] / static_cast<float>(half + win_ / 2)};
  for (int i = 0; i < win_; i++) samples[i] = (samples[i] - share[i & 1]) * window_[i];
}

void apply_mask(MaskKind kind, const float* mask, const float* spectrum, int bins, float* masked) {
  const float *m_re = mask, *m_im = mask + bins;
  if (kind == MASK_R) {
    for (int k = 0; k < bins; k++) {
      masked[2 * k] = spectrum[2 * k] * m_re[k];
      masked[2 * k + 1] = spectrum[2 * k + 1] * m_im[k];
    }
    return;
  }
  for (int k = 0; k < bins; k++) {
    float re = m_re[k], im = m_im[k];
    if (kind == MASK_E) {
      const float gain = tanh_over(std::sqrt(re * re + im * im));
      re *= gain;
      im *= gain;
    }
    masked[2 * k] = spectrum[2 * k] * re - spectrum[2 * k + 1] * im;
    masked[2 * k + 1] = spectrum[2 * k] * im + spectrum[2 * k + 1] * re;
  }
}

}  // namespace ek
