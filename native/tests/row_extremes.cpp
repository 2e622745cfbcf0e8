// What random numbers do not reach: int8 sums whose every product is the largest there is, sigmoid and tanh over their whole range, what is
// not a number, and weights that are not packed and end where they end. Every row that this build has and this CPU can run.
//
//     row_extremes [instruction sets ...]       exit status 1: a row is wrong
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../core/kernels.h"

using namespace ek;

namespace {

int g_failed = 0;
void expect(bool good, const char* row, const char* what, double got, double want) {
  if (!good && g_failed++ < 20) std::printf("FAIL %s: %s: got %.9g, want %.9g\n", row, what, got, want);
}

struct Packed {
  explicit Packed(size_t bytes) : memory(bytes + 64) {}
  void* at() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<char> memory;
};

// All inputs +-127 and all weights +-127, or -128 as a file that nobody quantized could have: no pair of products may overflow on its way.
void largest_sums(const Row* row) {
  constexpr int kChannels = 203, kTaps = 3, kColumns = 5, kOut = 17;
  const int wide = rounded(kChannels), step = row->planes * wide;
  for (int signs = 0; signs < 16; signs++)
    for (int lowest : {-127, -128}) {
      const auto sign = [&](int bit) { return signs >> bit & 1; };
      std::vector<float> re(wide, 0.0f), im(wide, 0.0f);
      for (int c = 0; c < kChannels; c++) re[c] = sign(0) ? 127.0f : -127.0f, im[c] = sign(1) ? 127.0f : -127.0f;
      std::vector<char> frame(static_cast<size_t>(kColumns) * step * row->element_bytes, static_cast<char>(row->zero));
      for (int n = 0; n < kColumns; n++)
        row->store_row(re.data(), im.data(), 1.0f, frame.data() + static_cast<size_t>(n) * step * row->element_bytes, wide, row->planes);
      const int wr = sign(2) ? 127 : lowest, wi = sign(3) ? 127 : lowest;
      const std::vector<int8_t> q_re(kTaps * kOut * kChannels, static_cast<int8_t>(wr)), q_im(kTaps * kOut * kChannels, static_cast<int8_t>(wi));
      const std::vector<float> one(kOut, 1.0f), zero(kOut, 0.0f);
      const Source sources[kTaps] = {{kChannels, step}, {kChannels, step}, {kChannels, step}};
      const Tap taps[kTaps] = {{frame.data()}, {frame.data()}, {frame.data()}};
      ConvSpec spec{};
      spec.c_out = kOut, spec.columns = kColumns, spec.n_taps = kTaps, spec.sources = sources;
      spec.q[0] = q_re.data(), spec.q[1] = q_im.data();
      for (int part = 0; part < 2; part++) spec.gain[part] = one.data(), spec.bias[part] = zero.data();
      spec.slope = spec.inv_scale = 1.0f;
      Packed memory(row->conv_bytes(&spec));
      Conv conv;
      row->pack_conv(&spec, memory.at(), &conv);
      std::vector<float> y(static_cast<size_t>(kColumns) * 2 * rounded(kOut));
      const Out out{nullptr, y.data(), 0, 2 * rounded(kOut), rounded(kOut)};
      row->conv(&conv, taps, &out, 0, conv.items);
      const int xr = static_cast<int>(re[0]), xi = static_cast<int>(im[0]);
      const float want[2] = {static_cast<float>(kTaps * kChannels * (wr * xr - wi * xi)), static_cast<float>(kTaps * kChannels * (wr * xi + wi * xr))};
      for (int n = 0; n < kColumns; n++)
        for (int part = 0; part < 2; part++)
          for (int o = 0; o < kOut; o++) {
            const float got = y[static_cast<size_t>(n) * 2 * rounded(kOut) + part * rounded(kOut) + o];
            expect(got == want[part], row->name, "largest convolution", got, want[part]);
          }

      const std::vector<int8_t> q_dense(kLanes * kChannels, static_cast<int8_t>(wr));
      const std::vector<float> ones(kLanes, 1.0f), zeros(kLanes, 0.0f);
      const DenseSpec dense_spec{kLanes, kChannels, nullptr, q_dense.data(), ones.data(), zeros.data()};
      Packed dense_memory(row->dense_bytes(&dense_spec));
      Dense dense;
      row->pack_dense(&dense_spec, dense_memory.at(), &dense);
      std::vector<char> x(static_cast<size_t>(wide) * row->element_bytes);
      row->store(re.data(), 1.0f, x.data(), wide);
      float sums[kLanes];
      row->dense(&dense, x.data(), sums, 0, dense.items);
      for (float got : sums) expect(got == static_cast<float>(kChannels * wr * xr), row->name, "largest dense", got, kChannels * wr * xr);
    }
}

// The first and the last layer read weights as they are; a vector made in one go has no room behind its end.
void unpacked_weights(const Row* row, const Row* scalar) {
  constexpr int kTaps = 2, kColumns = 5;
  for (int channels : {1, 2, 3, 5, 16, 17, 19}) {
    const int wide = rounded(channels);
    const size_t count = static_cast<size_t>(kTaps) * channels;
    std::vector<float> w[2] = {std::vector<float>(count), std::vector<float>(count)};
    for (size_t i = 0; i < count; i++) w[0][i] = std::sin(1.0f + i), w[1][i] = std::cos(2.0f * i);
    ConvSpec spec{};
    spec.columns = kColumns, spec.n_taps = kTaps, spec.slope = 0.25f, spec.inv_scale = 20.0f;
    for (int part = 0; part < 2; part++) spec.w[part] = w[part].data();

    const auto affine = [&](int n, std::vector<float> (&values)[4]) {
      for (int i = 0; i < 4; i++) values[i] = std::vector<float>(n, 0.5f + i);
      for (int part = 0; part < 2; part++) spec.gain[part] = values[part].data(), spec.bias[part] = values[2 + part].data();
    };
    std::vector<float> of_one[4], of_all[4];
    affine(1, of_one);
    std::vector<float> frame(static_cast<size_t>(kColumns) * 2 * wide, 0.0f);
    for (int n = 0; n < 2 * kColumns; n++)
      for (int c = 0; c < channels; c++) frame[static_cast<size_t>(n) * wide + c] = std::sin(0.3f * n + c);
    const Source sources[kTaps] = {{channels, 2 * wide}, {channels, 2 * wide}};
    const Tap taps[kTaps] = {{frame.data()}, {frame.data()}};
    spec.c_out = 1, spec.sources = sources;
    std::vector<float> re[2], im[2];
    for (int side = 0; side < 2; side++) {
      re[side] = im[side] = std::vector<float>(2 * kColumns - 1);
      (side ? row : scalar)->last(&spec, taps, re[side].data(), im[side].data(), 0, kColumns);
    }
    for (int n = 0; n < 2 * kColumns - 1; n += 2) {
      expect(std::fabs(re[1][n] - re[0][n]) <= 1e-5 * channels, row->name, "last layer, real", re[1][n], re[0][n]);
      expect(std::fabs(im[1][n] - im[0][n]) <= 1e-5 * channels, row->name, "last layer, imaginary", im[1][n], im[0][n]);
    }

    affine(channels, of_all);
    std::vector<float> pairs(2 * kColumns);
    for (int n = 0; n < 2 * kColumns; n++) pairs[n] = std::cos(0.7f * n);
    const Source one[kTaps] = {{1, 2}, {1, 2}};
    const Tap at[kTaps] = {{pairs.data()}, {pairs.data()}};
    spec.c_out = channels, spec.sources = one;
    std::vector<float> y[2];
    for (int side = 0; side < 2; side++) {
      y[side] = std::vector<float>(static_cast<size_t>(kColumns) * 2 * wide, 0.0f);
      const Out out{nullptr, y[side].data(), 0, 2 * wide, wide};
      (side ? row : scalar)->first(&spec, at, &out, 0, kColumns);
    }
    for (size_t i = 0; i < y[0].size(); i++) expect(std::fabs(y[1][i] - y[0][i]) <= 1e-5, row->name, "first layer", y[1][i], y[0][i]);
  }
}

// An LSTM without weights: its gates are its biases. Returns c, h and the stored h of every hidden unit.
struct Gates {
  std::vector<float> in, forget, g, open;
};
struct Result {
  std::vector<float> c, h;
  std::vector<char> stored;
};
Result run_lstm(const Row* row, const Gates& gates) {
  const int hidden = static_cast<int>(gates.in.size()), wide = rounded(hidden), segment = 1;
  const size_t count = static_cast<size_t>(4) * hidden;
  std::vector<float> bias, zeros(count * hidden, 0.0f);
  for (const auto* part : {&gates.in, &gates.forget, &gates.g, &gates.open}) bias.insert(bias.end(), part->begin(), part->end());
  const std::vector<int8_t> q(count * hidden, 0);
  const CellSpec spec{EK_LSTM, hidden, 1, &segment, zeros.data(), zeros.data(), row->format == EK_I8 ? q.data() : nullptr,
                      row->format == EK_I8 ? q.data() : nullptr, zeros.data(), zeros.data(), bias.data(), zeros.data()};
  Packed memory(row->cell_bytes(&spec));
  Cell cell;
  row->pack_cell(&spec, memory.at(), &cell);
  const std::vector<float> nothing(wide, 0.0f);
  std::vector<char> x(static_cast<size_t>(kLanes) * row->element_bytes), h_old(static_cast<size_t>(wide) * row->element_bytes);
  row->store(nothing.data(), 1.0f, x.data(), kLanes);
  row->store(nothing.data(), 1.0f, h_old.data(), wide);
  Result result{std::vector<float>(wide, 0.5f), std::vector<float>(wide), h_old}, other = result;
  const void* segments[] = {x.data()};
  CellRun run{};
  Result* results[2] = {&result, &other};
  for (int k = 0; k < 2; k++) {
    run.x[k] = segments;
    run.h_old[k] = h_old.data(), run.h_f32_old[k] = nothing.data();
    run.h_new[k] = results[k]->stored.data(), run.h_f32[k] = results[k]->h.data(), run.c[k] = results[k]->c.data();
  }
  row->cell(&cell, &run, 0, cell.items);
  return result;
}

void activations(const Row* row) {
  std::vector<float> x;
  for (double v = 1e-9; v < 30; v *= 1.03) x.push_back(static_cast<float>(v)), x.push_back(static_cast<float>(-v));
  for (float v : {0.0f, -0.0f, 87.0f, -87.0f, 88.5f, -88.5f, 104.0f, -104.0f, 1e30f, -1e30f, INFINITY, -INFINITY}) x.push_back(v);
  constexpr size_t kUnits = 29;  // of one cell; small, since a cell has weights from each to each
  for (size_t from = 0; from < x.size(); from += kUnits) {
    const size_t n = x.size() - from < kUnits ? x.size() - from : kUnits;
    const std::vector<float> some(x.begin() + from, x.begin() + from + n);
    const std::vector<float> one(n, 200.0f), nothing(n, -200.0f);  // of a sigmoid; tanh(200) is 1 too
    const Result tanh_of = run_lstm(row, {one, nothing, some, one}), sigmoid_of = run_lstm(row, {some, nothing, one, one});
    const Result open = run_lstm(row, {one, nothing, one, some});
    for (size_t i = 0; i < n; i++) {
      const double v = some[i], sigmoid = 1 / (1 + std::exp(-v));
      expect(std::fabs(tanh_of.c[i] - std::tanh(v)) <= 1e-6, row->name, "tanh", tanh_of.c[i], std::tanh(v));
      expect(std::fabs(sigmoid_of.c[i] - sigmoid) <= 1e-6, row->name, "sigmoid", sigmoid_of.c[i], sigmoid);
      expect(std::fabs(open.h[i] - sigmoid * std::tanh(1.0)) <= 1e-6, row->name, "sigmoid of the output gate", open.h[i], sigmoid * std::tanh(1.0));
    }
  }
}

// A NaN stays in its unit and stays one; stored as int8 it is what the scalar row says.
void not_a_number(const Row* row, const Row* scalar) {
  Gates gates{std::vector<float>(20, 1.0f), std::vector<float>(20, 1.0f), std::vector<float>(20, 1.0f), std::vector<float>(20, 1.0f)};
  gates.in[3] = gates.g[7] = gates.open[18] = NAN;
  const Result got = run_lstm(row, gates), want = run_lstm(scalar, gates);
  for (int i = 0; i < 20; i++) {
    const bool is_nan = i == 3 || i == 7 || i == 18;
    expect(std::isnan(got.h[i]) == is_nan, row->name, "h where a gate is NaN", got.h[i], want.h[i]);
    if (row->format == EK_I8 && is_nan) {
      int low = -127;
      if (row->element_bytes == 2) {
        int16_t q;
        std::memcpy(&q, got.stored.data() + 2 * i, 2);
        low = q;
      } else {
        low = static_cast<int8_t>(static_cast<unsigned char>(got.stored[i]) - row->zero);
      }
      expect(low == -127, row->name, "stored NaN", low, -127);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> isas(argv + 1, argv + argc);
  if (isas.empty()) isas = {"scalar", "avx2", "avx512", "neon", "neon_dotprod"};
  for (const std::string& isa : isas)
    for (Format format : {EK_F32, EK_BF16, EK_I8}) {
      const Row* row = row_for(isa.c_str(), format);
      if (!row) {
        if (argc > 1) return std::printf("%s cannot run here\n", isa.c_str()), 2;
        continue;
      }
      const int before = g_failed;
      if (format == EK_I8) largest_sums(row);
      unpacked_weights(row, row_for("scalar", format));
      activations(row);
      not_a_number(row, row_for("scalar", format));
      std::printf("%s as %s: %s\n", isa.c_str(), row->name, g_failed == before ? "good" : "WRONG");
    }
  return g_failed != 0;
}
