#include "cuda/load.h"

#include "core/status.h"

namespace ek {
namespace cuda {
namespace {

std::vector<float> floats(const ek::Tensor& tensor) {
  std::vector<float> values(tensor.count);
  for (size_t i = 0; i < values.size(); ++i) values[i] = tensor.at(i);
  return values;
}

ConvWeights conv(const ConvTensors& from, int c_in, int c_out) {
  ConvWeights layer;
  layer.c_in = c_in;
  layer.c_out = c_out;
  layer.w = floats(from.weight);
  layer.gain = floats(from.gain);
  layer.bias = floats(from.bias);
  layer.slope = from.slope;
  return layer;
}

}  // namespace

ek_status load(const WeightFile& file, Model* model) {
  if (file.format == STORED_I8) return fail(EK_UNSUPPORTED, "this is an int8 weight file; the CUDA engine computes in fp32 or fp16 and needs the float one");
  const Shape& shape = file.shape;
  const int n = shape.depth;
  *model = Model();
  model->bins = shape.bins();
  model->look_ahead = shape.look_ahead;
  model->gru = shape.is_gru;
  for (int i = 0; i < n; ++i) model->encoder.push_back(conv(file.encoder[i], shape.c_enc[i], shape.c_enc[i + 1]));
  for (int l = 0; l < shape.rnn_layers; ++l) {
    RecurrentWeights layer;
    layer.hidden = shape.hidden[l];
    for (int net = 0; net < 2; ++net) {
      const NetTensors& from = file.recurrent[l].net[net];
      layer.nets[net] = NetWeights{floats(from.w_x), floats(from.w_h), floats(from.b_x), floats(from.b_h)};
    }
    model->recurrent.push_back(layer);
  }
  model->projection_channels = shape.c_dec[0];
  for (int part = 0; part < 2; ++part) model->projection[part] = DenseWeights{floats(file.projection[part].weight), floats(file.projection[part].bias)};
  for (int j = 0; j < n; ++j) model->decoder.push_back(conv(file.decoder[j], shape.c_dec[j] + shape.c_enc[n - j], shape.c_dec[j + 1]));
  return EK_OK;
}

}  // namespace cuda
}  // namespace ek
