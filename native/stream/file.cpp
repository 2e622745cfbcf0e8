#include "stream/file.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"

namespace ek {
namespace {

constexpr char kMagic[8] = {'E', 'K', 'D', 'C', 'C', 'R', 'N', '\0'};
constexpr uint32_t kVersion = 1;
constexpr size_t kAlign = 64;
constexpr size_t kBehindCrc = 28;    // the crc covers everything from here
constexpr size_t kFixedHeader = 80;  // then the channels of every layer
constexpr int kMaxChannels = 1024, kMaxHidden = 1024, kMinFft = 16, kMaxOverlap = 64;

uint32_t load_u32(const unsigned char* p) {
  return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
}
uint64_t load_u64(const unsigned char* p) { return load_u32(p) | static_cast<uint64_t>(load_u32(p + 4)) << 32; }

struct CrcTable {
  uint32_t byte[256];
  constexpr CrcTable() : byte() {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t r = i;
      for (int bit = 0; bit < 8; bit++) r = r & 1 ? r >> 1 ^ 0xEDB88320u : r >> 1;
      byte[i] = r;
    }
  }
};
constexpr CrcTable kCrc;

bool is_finite_f32(uint32_t bits) { return (bits & 0x7f800000u) != 0x7f800000u; }
bool is_finite_f16(uint32_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

float from_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  uint32_t bits;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Walks over the tensors. `what` and two indices name them in messages.
class Reader {
 public:
  Reader(const unsigned char* bytes, size_t n, size_t at) : bytes_(bytes), n_(n), at_(at) {}

  ek_status take(Tensor* tensor, StoredFormat kind, size_t count, const char* what, int layer) {
    const size_t each = kind == STORED_F32 ? 4 : kind == STORED_F16 ? 2 : 1;
    // Counts are products of checked dimensions, below 2^40: nothing here overflows.
    const size_t size = (count * each + kAlign - 1) / kAlign * kAlign;
    if (size > n_ - at_) return fail(EK_BAD_MODEL, "the file ends within %s of layer %d: %zu bytes are needed, %zu are left", what, layer, size, n_ - at_);
    *tensor = Tensor{bytes_ + at_, count, kind};
    at_ += size;
    return check(*tensor, what, layer);
  }

  ek_status take_scalars(float* values, size_t count, const char* what, int layer) {
    Tensor tensor;
    const ek_status status = take(&tensor, STORED_F32, count, what, layer);
    for (size_t i = 0; status == EK_OK && i < count; i++) values[i] = tensor.at(i);
    return status;
  }

  bool at_end() const { return at_ == n_; }
  size_t left() const { return n_ - at_; }

 private:
  static ek_status check(const Tensor& tensor, const char* what, int layer) {
    for (size_t i = 0; i < tensor.count; i++) {
      if (tensor.kind == STORED_I8) {
        if (tensor.bytes[i] == 0x80) return fail(EK_BAD_MODEL, "%s of layer %d holds -128; weights are symmetric, -127 to 127", what, layer);
      } else {
        const bool finite = tensor.kind == STORED_F32 ? is_finite_f32(load_u32(tensor.bytes + 4 * i))
                                                      : is_finite_f16(static_cast<uint32_t>(tensor.bytes[2 * i] | tensor.bytes[2 * i + 1] << 8));
        if (!finite) return fail(EK_BAD_MODEL, "%s of layer %d holds a number that is not finite", what, layer);
      }
    }
    return EK_OK;
  }

  const unsigned char* bytes_;
  size_t n_, at_;
};

ek_status check_scale(float scale, const char* what, int layer) {
  const float inverse = 1.0f / scale;
  if (!(scale > 0.0f) || !std::isfinite(inverse) || inverse == 0.0f) return fail(EK_BAD_MODEL, "%s %d has the output scale %g", what, layer, static_cast<double>(scale));
  return EK_OK;
}

ek_status in_range(uint32_t value, uint32_t low, uint32_t high, const char* what) {
  if (value < low || value > high) return fail(EK_BAD_MODEL, "%s is %u, allowed are %u to %u", what, value, low, high);
  return EK_OK;
}

#define EK_TRY(call)                              \
  do {                                            \
    const ek_status status_ = (call);             \
    if (status_ != EK_OK) return status_;         \
  } while (0)

ek_status read_shape(const unsigned char* bytes, size_t header, Shape* shape) {
  const auto field = [&](int i) { return load_u32(bytes + 32 + 4 * i); };
  EK_TRY(in_range(field(0), 1000, 768000, "the sample rate"));
  EK_TRY(in_range(field(3), kMinFft, kMaxFft, "n_fft"));
  if (field(3) & (field(3) - 1)) return fail(EK_BAD_MODEL, "n_fft is %u, not a power of two", field(3));
  EK_TRY(in_range(field(1), 2, field(3), "the window length"));
  EK_TRY(in_range(field(2), 1, field(1) / 2, "the hop length"));
  if (field(1) % field(2) || field(1) / field(2) > kMaxOverlap) {
    return fail(EK_BAD_MODEL, "the window of %u samples is not 2 to %d whole hops of %u", field(1), kMaxOverlap, field(2));
  }
  if (field(4) != kKernelF || field(5) != kKernelT || field(6) != kStrideF) {
    return fail(EK_BAD_MODEL, "kernels of %u x %u with stride %u; this engine runs 5 x 2 with stride 2", field(4), field(5), field(6));
  }
  EK_TRY(in_range(field(7), 2, EK_MAX_DEPTH, "the depth"));
  if (field(3) / 2 % (1u << field(7))) return fail(EK_BAD_MODEL, "%u frequencies cannot be halved %u times", field(3) / 2, field(7));
  EK_TRY(in_range(field(8), 0, 2, "the mask kind"));
  EK_TRY(in_range(field(9), 0, 1, "look_ahead"));
  EK_TRY(in_range(field(10), 0, 1, "the recurrent kind"));
  EK_TRY(in_range(field(11), 1, EK_MAX_RECURRENT, "the number of recurrent layers"));

  shape->sample_rate_hz = static_cast<int>(field(0));
  shape->win_length = static_cast<int>(field(1));
  shape->hop_length = static_cast<int>(field(2));
  shape->n_fft = static_cast<int>(field(3));
  shape->depth = static_cast<int>(field(7));
  shape->mask = static_cast<MaskKind>(field(8));
  shape->look_ahead = field(9) == 1;
  shape->is_gru = field(10) == 1;
  shape->rnn_layers = static_cast<int>(field(11));

  const int n = shape->depth, layers = shape->rnn_layers;
  const size_t used = kFixedHeader + 4 * static_cast<size_t>(2 * (n + 1) + layers);
  if (header != (used + kAlign - 1) / kAlign * kAlign) return fail(EK_BAD_MODEL, "the header says that it has %zu bytes; one of depth %d has %zu", header, n, (used + kAlign - 1) / kAlign * kAlign);
  const unsigned char* channels = bytes + kFixedHeader;
  for (int i = 0; i <= n; i++) {
    EK_TRY(in_range(load_u32(channels + 4 * i), 1, i ? kMaxChannels : 1, "the channels of an encoder layer"));
    EK_TRY(in_range(load_u32(channels + 4 * (n + 1 + i)), 1, i < n ? kMaxChannels : 1, "the channels of a decoder layer"));
    shape->c_enc[i] = static_cast<int>(load_u32(channels + 4 * i));
    shape->c_dec[i] = static_cast<int>(load_u32(channels + 4 * (n + 1 + i)));
  }
  for (int i = 0; i < layers; i++) {
    const uint32_t hidden = load_u32(channels + 4 * (2 * (n + 1) + i));
    EK_TRY(in_range(hidden, 1, kMaxHidden, "the width of a recurrent layer"));
    shape->hidden[i] = static_cast<int>(hidden);
  }
  for (size_t i = used; i < header; i++) {
    if (bytes[i]) return fail(EK_BAD_MODEL, "the header's last bytes are not zero");
  }
  if (shape->features() > kMaxFeatures || shape->c_dec[0] * shape->frequencies(n) > kMaxFeatures) {
    return fail(EK_BAD_MODEL, "the recurrent layers have %d features in and %d out, at most %d fit", shape->features(), shape->c_dec[0] * shape->frequencies(n), kMaxFeatures);
  }
  return EK_OK;
}

size_t product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

ek_status read_conv(Reader* reader, StoredFormat kind, int c_in, int c_out, const char* what, int layer, ConvTensors* conv) {
  float tail[2];
  EK_TRY(reader->take(&conv->weight, kind, 2 * product(c_in, c_out) * kKernelF * kKernelT, what, layer));
  EK_TRY(reader->take(&conv->gain, STORED_F32, product(2, c_out), what, layer));
  EK_TRY(reader->take(&conv->bias, STORED_F32, product(2, c_out), what, layer));
  EK_TRY(reader->take_scalars(tail, 2, what, layer));
  conv->slope = tail[0];
  conv->out_scale = tail[1];
  return check_scale(tail[1], what, layer);
}

ek_status read_net(Reader* reader, StoredFormat kind, int rows, int width, int hidden, int layer, NetTensors* net) {
  const size_t n = static_cast<size_t>(rows);
  EK_TRY(reader->take(&net->w_x, kind, product(rows, width), "recurrent weights", layer));
  EK_TRY(reader->take(&net->w_h, kind, product(rows, hidden), "recurrent weights", layer));
  EK_TRY(reader->take(&net->b_x, STORED_F32, n, "recurrent biases", layer));
  EK_TRY(reader->take(&net->b_h, STORED_F32, n, "recurrent biases", layer));
  if (kind == STORED_I8) {
    EK_TRY(reader->take(&net->scale_x, STORED_F32, n, "recurrent scales", layer));
    EK_TRY(reader->take(&net->scale_h, STORED_F32, n, "recurrent scales", layer));
  }
  return EK_OK;
}

ek_status read_tensors(Reader* reader, WeightFile* file) {
  const Shape& shape = file->shape;
  const int n = shape.depth;
  const StoredFormat kind = file->format;
  // The first and the last layer of an int8 file are float.
  for (int i = 0; i < n; i++) {
    EK_TRY(read_conv(reader, kind == STORED_I8 && i == 0 ? STORED_F32 : kind, shape.c_enc[i], shape.c_enc[i + 1], "the encoder", i, &file->encoder[i]));
  }
  int width = shape.features();
  for (int i = 0; i < shape.rnn_layers; i++) {
    const int hidden = shape.hidden[i];
    for (NetTensors& net : file->recurrent[i].net) EK_TRY(read_net(reader, kind, shape.gates() * hidden, width, hidden, i, &net));
    EK_TRY(reader->take_scalars(&file->recurrent[i].out_scale, 1, "the recurrent output", i));
    EK_TRY(check_scale(file->recurrent[i].out_scale, "recurrent layer", i));
    width = hidden;
  }
  const int rows = shape.c_dec[0] * shape.frequencies(n);
  for (DenseTensors& dense : file->projection) {
    EK_TRY(reader->take(&dense.weight, kind, product(rows, width), "the projection", 0));
    EK_TRY(reader->take(&dense.bias, STORED_F32, static_cast<size_t>(rows), "the projection", 0));
    if (kind == STORED_I8) EK_TRY(reader->take(&dense.scale, STORED_F32, static_cast<size_t>(rows), "the projection", 0));
  }
  EK_TRY(reader->take_scalars(&file->projection_scale, 1, "the projection", 0));
  EK_TRY(check_scale(file->projection_scale, "projection", 0));
  for (int j = 0; j < n; j++) {
    const int c_in = shape.c_dec[j] + shape.c_enc[n - j];
    EK_TRY(read_conv(reader, kind == STORED_I8 && j == n - 1 ? STORED_F32 : kind, c_in, shape.c_dec[j + 1], "the decoder", j, &file->decoder[j]));
  }
  if (!reader->at_end()) return fail(EK_BAD_MODEL, "%zu bytes follow the last tensor", reader->left());
  return EK_OK;
}

uint64_t count_parameters(const WeightFile& file) {
  uint64_t count = 0;
  const auto conv = [&](const ConvTensors& layer) { count += layer.weight.count + layer.gain.count + layer.bias.count + 1; };
  for (int i = 0; i < file.shape.depth; i++) conv(file.encoder[i]), conv(file.decoder[i]);
  for (int i = 0; i < file.shape.rnn_layers; i++) {
    for (const NetTensors& net : file.recurrent[i].net) count += net.w_x.count + net.w_h.count + net.b_x.count + net.b_h.count;
  }
  for (const DenseTensors& dense : file.projection) count += dense.weight.count + dense.bias.count;
  return count;
}

}  // namespace

float Tensor::at(size_t i) const {
  if (kind == STORED_I8) return static_cast<float>(int8_at(i));
  if (kind == STORED_F16) return from_half(static_cast<uint32_t>(bytes[2 * i] | bytes[2 * i + 1] << 8));
  const uint32_t bits = load_u32(bytes + 4 * i);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

uint32_t crc32_of(const void* bytes, size_t n) {
  const unsigned char* p = static_cast<const unsigned char*>(bytes);
  uint32_t r = ~0u;
  for (size_t i = 0; i < n; i++) r = r >> 8 ^ kCrc.byte[(r ^ p[i]) & 255];
  return ~r;
}

ek_status read_weight_file(const void* memory, size_t n, WeightFile* file) {
  const unsigned char* bytes = static_cast<const unsigned char*>(memory);
  if (n < kFixedHeader) return fail(EK_BAD_MODEL, "%zu bytes are too few for a weight file", n);
  if (memcmp(bytes, kMagic, sizeof kMagic) != 0) return fail(EK_BAD_MODEL, "this is not a weight file: it does not begin with EKDCCRN");
  const uint32_t version = load_u32(bytes + 8);
  if (version != kVersion) return fail(EK_BAD_MODEL, "the weight file has version %u, this library reads version %u", version, kVersion);
  const size_t header = load_u32(bytes + 12);
  if (header < kFixedHeader || header % kAlign || header > n) return fail(EK_BAD_MODEL, "the header says that it has %zu bytes, the file has %zu", header, n);
  const uint64_t total = load_u64(bytes + 16);
  if (total != n) return fail(EK_BAD_MODEL, "the file has %zu bytes and says that it has %llu: is it truncated?", n, static_cast<unsigned long long>(total));
  const uint32_t crc = load_u32(bytes + 24), format = load_u32(bytes + 28);
  if (crc32_of(bytes + kBehindCrc, n - kBehindCrc) != crc) return fail(EK_BAD_MODEL, "the checksum does not match: the file is damaged");
  if (format != STORED_F32 && format != STORED_F16 && format != STORED_I8) return fail(EK_BAD_MODEL, "unknown weight format %u", format);

  *file = WeightFile{};
  file->format = static_cast<StoredFormat>(format);
  file->crc32 = crc;
  file->bytes = n;
  EK_TRY(read_shape(bytes, header, &file->shape));
  Reader reader(bytes, n, header);
  EK_TRY(read_tensors(&reader, file));
  file->parameters = count_parameters(*file);
  return EK_OK;
}

MappedFile::~MappedFile() {
  if (bytes_) munmap(bytes_, size_);
}

ek_status MappedFile::open(const char* path) {
  const int handle = ::open(path, O_RDONLY | O_CLOEXEC);
  if (handle < 0) return fail(EK_BAD_FILE, "%.300s: %s", path, strerror(errno));
  struct stat status;
  ek_status result = EK_OK;
  if (fstat(handle, &status) != 0) {
    result = fail(EK_BAD_FILE, "%.300s: %s", path, strerror(errno));
  } else if (!S_ISREG(status.st_mode)) {
    result = fail(EK_BAD_FILE, "%.300s is not a plain file", path);
  } else if (status.st_size <= 0) {
    result = fail(EK_BAD_MODEL, "%.300s is empty", path);
  } else {
    void* bytes = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, handle, 0);
    if (bytes == MAP_FAILED) {
      result = fail(EK_BAD_FILE, "%.300s: %s", path, strerror(errno));
    } else {
      bytes_ = bytes;
      size_ = static_cast<size_t>(status.st_size);
    }
  }
  ::close(handle);
  return result;
}

}  // namespace ek
