// DCCRN offline on a whole clip, in double, with plain loops over the definition: causal convolutions, transposed convolutions by
// scattering, nothing that the kernels use. Also random models of any shape.
#ifndef EK_CUDA_TESTS_REFERENCE_H
#define EK_CUDA_TESTS_REFERENCE_H

#include <cmath>
#include <complex>
#include <random>
#include <vector>

#include "../model.h"

namespace reference {

using ek::cuda::ConvWeights;
using ek::cuda::Model;
using ek::cuda::NetWeights;
using Number = std::complex<double>;

struct Clip {  // [channel][frequency][frame]
  int channels = 0, bins = 0, frames = 0;
  std::vector<Number> v;
  Clip() = default;
  Clip(int c, int f, int t) : channels(c), bins(f), frames(t), v(static_cast<size_t>(c) * f * t) {}
  Number& at(int c, int f, int t) { return v[(static_cast<size_t>(c) * bins + f) * frames + t]; }
  const Number& at(int c, int f, int t) const { return v[(static_cast<size_t>(c) * bins + f) * frames + t]; }
};

inline Number affine(const ConvWeights& layer, int c, Number sum) {
  double re = layer.gain[c] * sum.real() + layer.bias[c], im = layer.gain[layer.c_out + c] * sum.imag() + layer.bias[layer.c_out + c];
  return Number(re > 0 ? re : layer.slope * re, im > 0 ? im : layer.slope * im);
}

// Conv2d, kernel (5, 2), stride (2, 1), padding 2 in frequency, one frame of zeros before the first.
inline Clip encode(const ConvWeights& layer, const Clip& x) {
  Clip y(layer.c_out, x.bins / 2, x.frames);
  const size_t part = layer.w.size() / 2;
  for (int o = 0; o < layer.c_out; ++o)
    for (int f = 0; f < y.bins; ++f)
      for (int t = 0; t < y.frames; ++t) {
        Number sum = 0;
        for (int c = 0; c < layer.c_in; ++c)
          for (int kf = 0; kf < 5; ++kf)
            for (int kt = 0; kt < 2; ++kt) {
              const int fi = 2 * f - 2 + kf, ti = t - 1 + kt;
              if (fi < 0 || fi >= x.bins || ti < 0) continue;
              const size_t at = ((static_cast<size_t>(o) * layer.c_in + c) * 5 + kf) * 2 + kt;
              sum += Number(layer.w[at], layer.w[part + at]) * x.at(c, fi, ti);
            }
        y.at(o, f, t) = affine(layer, o, sum);
      }
  return y;
}

// ConvTranspose2d, kernel (5, 2), stride (2, 1), padding (2, 0), output padding (1, 0): one frame more than the input. The reference
// drops the first frame (look-ahead) or, strictly causal, the last.
inline Clip decode(const ConvWeights& layer, const Clip& x, bool look_ahead) {
  Clip sum(layer.c_out, x.bins * 2, x.frames + 1);
  const size_t part = layer.w.size() / 2;
  for (int c = 0; c < layer.c_in; ++c)
    for (int o = 0; o < layer.c_out; ++o)
      for (int kf = 0; kf < 5; ++kf)
        for (int kt = 0; kt < 2; ++kt) {
          const size_t at = ((static_cast<size_t>(c) * layer.c_out + o) * 5 + kf) * 2 + kt;
          const Number w(layer.w[at], layer.w[part + at]);
          for (int f = 0; f < x.bins; ++f) {
            const int fo = 2 * f - 2 + kf;
            if (fo < 0 || fo >= sum.bins) continue;
            for (int t = 0; t < x.frames; ++t) sum.at(o, fo, t + kt) += w * x.at(c, f, t);
          }
        }
  Clip y(layer.c_out, sum.bins, x.frames);
  for (int o = 0; o < layer.c_out; ++o)
    for (int f = 0; f < y.bins; ++f)
      for (int t = 0; t < y.frames; ++t) y.at(o, f, t) = affine(layer, o, sum.at(o, f, t + (look_ahead ? 1 : 0)));
  return y;
}

inline double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

// One real net over a sequence [frame][inputs] -> [frame][hidden], as torch's nn.LSTM or nn.GRU.
inline std::vector<std::vector<double>> run(const NetWeights& net, bool gru, int hidden, const std::vector<std::vector<double>>& x) {
  const int gates = gru ? 3 : 4;
  std::vector<double> h(hidden, 0.0), c(hidden, 0.0);
  std::vector<std::vector<double>> y;
  for (const std::vector<double>& frame : x) {
    std::vector<double> of_x(gates * hidden), of_h(gates * hidden);
    for (int row = 0; row < gates * hidden; ++row) {
      of_x[row] = net.b_x[row];
      of_h[row] = net.b_h[row];
      for (size_t k = 0; k < frame.size(); ++k) of_x[row] += net.w_x[row * frame.size() + k] * frame[k];
      for (int k = 0; k < hidden; ++k) of_h[row] += net.w_h[static_cast<size_t>(row) * hidden + k] * h[k];
    }
    for (int u = 0; u < hidden; ++u) {
      const auto gate = [&](int g) { return of_x[g * hidden + u] + of_h[g * hidden + u]; };
      if (gru) {
        const double r = sigmoid(gate(0)), z = sigmoid(gate(1)), n = std::tanh(of_x[2 * hidden + u] + r * of_h[2 * hidden + u]);
        h[u] = (1 - z) * n + z * h[u];
      } else {
        c[u] = sigmoid(gate(1)) * c[u] + sigmoid(gate(0)) * std::tanh(gate(2));
        h[u] = sigmoid(gate(3)) * std::tanh(c[u]);
      }
    }
    y.push_back(h);
  }
  return y;
}

// Spectrum [1][bins][frames] -> mask of the same shape.
inline Clip mask(const Model& model, const Clip& spectrum) {
  const int n = model.depth(), frames = spectrum.frames, bins = model.bins_of(n);
  std::vector<Clip> skips;
  Clip x = spectrum;
  for (const ConvWeights& layer : model.encoder) skips.push_back(x = encode(layer, x));
  std::vector<std::vector<double>> re(frames), im(frames);
  for (int t = 0; t < frames; ++t)
    for (int c = 0; c < x.channels; ++c)
      for (int f = 0; f < bins; ++f) {
        re[t].push_back(x.at(c, f, t).real());
        im[t].push_back(x.at(c, f, t).imag());
      }
  for (const auto& layer : model.recurrent) {
    const auto r_re = run(layer.nets[0], model.gru, layer.hidden, re), r_im = run(layer.nets[0], model.gru, layer.hidden, im);
    const auto i_re = run(layer.nets[1], model.gru, layer.hidden, re), i_im = run(layer.nets[1], model.gru, layer.hidden, im);
    for (int t = 0; t < frames; ++t) {
      re[t].resize(layer.hidden);
      im[t].resize(layer.hidden);
      for (int u = 0; u < layer.hidden; ++u) {
        re[t][u] = r_re[t][u] - i_im[t][u];
        im[t][u] = r_im[t][u] + i_re[t][u];
      }
    }
  }
  x = Clip(model.projection_channels, bins, frames);
  const int inputs = model.recurrent.back().hidden;
  for (int t = 0; t < frames; ++t)
    for (int c = 0; c < x.channels; ++c)
      for (int f = 0; f < bins; ++f) {
        const int row = c * bins + f;
        double part[2];
        for (int p = 0; p < 2; ++p) {
          part[p] = model.projection[p].bias[row];
          for (int k = 0; k < inputs; ++k) part[p] += model.projection[p].w[static_cast<size_t>(row) * inputs + k] * (p ? im : re)[t][k];
        }
        x.at(c, f, t) = Number(part[0], part[1]);
      }
  for (int j = 0; j < n; ++j) {
    const Clip& skip = skips[n - 1 - j];
    Clip joined(x.channels + skip.channels, x.bins, frames);
    std::copy(x.v.begin(), x.v.end(), joined.v.begin());
    std::copy(skip.v.begin(), skip.v.end(), joined.v.begin() + x.v.size());
    x = decode(model.decoder[j], joined, model.look_ahead);
  }
  return x;
}

// ---- random models ----

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  float normal() { return std::normal_distribution<float>()(engine); }
  std::vector<float> normals(size_t n, double scale, double offset = 0) {
    std::vector<float> v(n);
    for (float& f : v) f = static_cast<float>(offset + scale * normal());
    return v;
  }
};

struct Widths {
  int bins;
  std::vector<int> encoder, hidden;   // complex channels behind each encoder layer, hidden units of each recurrent layer
  int projection;
  std::vector<int> decoder;           // complex channels behind each decoder layer; the last is 1
};

inline Model random_model(const Widths& widths, bool look_ahead, bool gru, unsigned seed) {
  Random random(seed);
  Model model;
  model.bins = widths.bins;
  model.look_ahead = look_ahead;
  model.gru = gru;
  const int n = static_cast<int>(widths.encoder.size());
  const auto conv = [&](int c_in, int c_out, double taps) {
    ConvWeights layer;
    layer.c_in = c_in;
    layer.c_out = c_out;
    layer.w = random.normals(static_cast<size_t>(20) * c_in * c_out, 1 / std::sqrt(2 * taps * c_in));
    layer.gain = random.normals(2 * c_out, 0.2, 1.0);
    layer.bias = random.normals(2 * c_out, 0.2);
    layer.slope = 0.25f;
    return layer;
  };
  int c = 1;
  for (int c_out : widths.encoder) {
    model.encoder.push_back(conv(c, c_out, 10));
    c = c_out;
  }
  int inputs = c * model.bins_of(n);
  const int gates = gru ? 3 : 4;
  for (int h : widths.hidden) {
    ek::cuda::RecurrentWeights layer;
    layer.hidden = h;
    for (NetWeights& net : layer.nets) {
      net.w_x = random.normals(static_cast<size_t>(gates) * h * inputs, 1 / std::sqrt(inputs));
      net.w_h = random.normals(static_cast<size_t>(gates) * h * h, 1 / std::sqrt(h));
      net.b_x = random.normals(gates * h, 0.1);
      net.b_h = random.normals(gates * h, 0.1);
    }
    model.recurrent.push_back(layer);
    inputs = h;
  }
  model.projection_channels = widths.projection;
  for (auto& dense : model.projection) {
    dense.w = random.normals(static_cast<size_t>(widths.projection) * model.bins_of(n) * inputs, 2 / std::sqrt(inputs));
    dense.bias = random.normals(static_cast<size_t>(widths.projection) * model.bins_of(n), 0.1);
  }
  c = widths.projection;
  for (int j = 0; j < n; ++j) {
    model.decoder.push_back(conv(c + widths.encoder[n - 1 - j], widths.decoder[j], 5));
    c = widths.decoder[j];
  }
  model.decoder.back().slope = 1.0f;
  return model;
}

}  // namespace reference
#endif
