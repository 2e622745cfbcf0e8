#include "npy.h"

#include <cstring>

#include "files.h"
#include "stop.h"

namespace ek {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are copied as they lie in memory");

constexpr char kMagic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0};
constexpr size_t kPreamble = 10;  // the magic, the version, the header's length
constexpr size_t kMostDimensions = 8;
constexpr int64_t kMostElements = int64_t(1) << 31;

// The header is a Python dict that NumPy writes in one way only:
// {'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }   then spaces and a newline.
class Header {
 public:
  Header(const std::string& text, const std::string& where) : text_(text), where_(where) {}

  void read(NpyFile* file) {
    need("{'descr': '");
    const size_t end = text_.find('\'', at_);
    if (end == std::string::npos) fail();
    file->dtype = text_.substr(at_, end - at_);
    at_ = end;
    need("', 'fortran_order': ");
    if (text_.compare(at_, 4, "True") == 0) throw Stop(kDamaged, where_ + ": Fortran order, expected C order");
    need("False, 'shape': (");
    while (at_ < text_.size() && text_[at_] != ')') file->shape.push_back(dimension(file->shape.size()));
    need("), }");
    while (at_ + 1 < text_.size() && text_[at_] == ' ') at_++;
    if (at_ + 1 != text_.size() || text_[at_] != '\n') fail();
  }

 private:
  [[noreturn]] void fail() const { throw Stop(kDamaged, where_ + ": the .npy header is not as NumPy writes it, from its byte " + std::to_string(at_) + " on"); }

  void need(const char* wanted) {
    if (text_.compare(at_, strlen(wanted), wanted) != 0) fail();
    at_ += strlen(wanted);
  }

  // `4, ` or `4)`; a single one is written `4,)`.
  int64_t dimension(size_t number) {
    if (number >= kMostDimensions) throw Stop(kDamaged, where_ + ": more than " + std::to_string(kMostDimensions) + " dimensions");
    int64_t value = 0;
    const size_t start = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value * 10 + (text_[at_++] - '0');
      if (value > kMostElements) throw Stop(kDamaged, where_ + ": a dimension is over 2^31");
    }
    if (at_ == start || (at_ - start > 1 && text_[start] == '0')) fail();
    if (number > 0 && text_[at_] == ')') return value;
    need(",");
    if (number == 0 && text_[at_] == ')') return value;
    need(" ");
    if (text_[at_] == ')') fail();
    return value;
  }

  const std::string& text_;
  const std::string& where_;
  size_t at_ = 0;
};

size_t size_of(const std::string& dtype, const std::string& where) {
  if (dtype == "<f4") return 4;
  if (dtype == "<i2") return 2;
  if (dtype == "|u1") return 1;
  throw Stop(kDamaged, where + ": dtype `" + dtype.substr(0, 20) + "`, expected <f4, |u1 or <i2");
}

}  // namespace

std::string to_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t count_of(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t dimension : shape) count *= dimension;
  return count;
}

NpyFile parse_npy(const std::string& bytes, const std::string& where) {
  if (bytes.size() < kPreamble || memcmp(bytes.data(), kMagic, 6) != 0) throw Stop(kDamaged, where + ": no .npy file");
  if (memcmp(bytes.data() + 6, kMagic + 6, 2) != 0) throw Stop(kDamaged, where + ": .npy of another version, expected 1.0");
  const size_t length = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  if (bytes.size() - kPreamble < length) throw Stop(kDamaged, where + ": cut off in the .npy header");
  NpyFile file;
  const std::string header = bytes.substr(kPreamble, length);
  Header(header, where).read(&file);
  uint64_t count = 1;
  for (const int64_t dimension : file.shape) {
    count *= static_cast<uint64_t>(dimension);  // both are at most 2^31
    if (count > static_cast<uint64_t>(kMostElements)) throw Stop(kDamaged, where + ": shape " + to_text(file.shape) + " has over 2^31 elements");
  }
  const uint64_t wanted = count * size_of(file.dtype, where), have = bytes.size() - kPreamble - length;
  if (have != wanted) {
    throw Stop(kDamaged, where + ": " + std::to_string(have) + " bytes of elements, shape " + to_text(file.shape) + " needs " + std::to_string(wanted));
  }
  file.bytes = bytes.substr(kPreamble + length);
  return file;
}

NpyFile read_npy(const std::string& path) { return parse_npy(read_file(path), path); }

Tensor read_floats(const std::string& path) {
  const NpyFile file = read_npy(path);
  if (file.dtype != "<f4") throw Stop(kDamaged, path + ": dtype " + file.dtype + ", expected <f4");
  Tensor tensor{file.shape, std::vector<float>(file.bytes.size() / 4)};
  if (!file.bytes.empty()) memcpy(tensor.values.data(), file.bytes.data(), file.bytes.size());
  return tensor;
}

std::string npy_of(const Shape& shape, const float* values) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); i++) header += (i ? ", " : "") + std::to_string(shape[i]);
  header += shape.size() == 1 ? ",), }" : "), }";
  header.append(63 - (kPreamble + header.size()) % 64, ' ');  // elements start at a multiple of 64 bytes
  header += '\n';
  std::string bytes(kMagic, sizeof kMagic);
  bytes += static_cast<char>(header.size() & 255);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values), static_cast<size_t>(count_of(shape)) * sizeof(float));
  return bytes;
}

void write_npy(const std::string& path, const Tensor& tensor) { write_file(path, npy_of(tensor.shape, tensor.values.data())); }

}  // namespace ek
