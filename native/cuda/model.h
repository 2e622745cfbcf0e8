// A DCCRN as the weight file holds it, widened to float. Shapes as in the file: see docs of the weight file.
#ifndef EK_CUDA_MODEL_H
#define EK_CUDA_MODEL_H

#include <vector>

namespace ek {
namespace cuda {

struct ConvWeights {
  int c_in = 0, c_out = 0;          // complex
  std::vector<float> w;             // encoder [2][c_out][c_in][5][2], decoder [2][c_in][c_out][5][2] with the skip's channels last
  std::vector<float> gain, bias;    // [2][c_out]
  float slope = 1.0f;
};

struct NetWeights {                 // gates in torch's order
  std::vector<float> w_x, w_h;      // [gates * hidden][inputs], [gates * hidden][hidden]
  std::vector<float> b_x, b_h;      // [gates * hidden]
};

struct RecurrentWeights {
  int hidden = 0;
  NetWeights nets[2];               // R, I
};

struct DenseWeights {
  std::vector<float> w, bias;       // [c_dec[0] * F][hidden], rows in the order channel * F + f
};

struct Model {
  int bins = 256;                   // n_fft / 2
  bool look_ahead = true, gru = false;
  std::vector<ConvWeights> encoder;
  std::vector<RecurrentWeights> recurrent;
  DenseWeights projection[2];       // real, imaginary
  int projection_channels = 0;      // c_dec[0]
  std::vector<ConvWeights> decoder;

  int depth() const { return static_cast<int>(encoder.size()); }
  int bins_of(int layer) const { return bins >> layer; }  // behind `layer` encoder layers
};

}  // namespace cuda
}  // namespace ek
#endif
