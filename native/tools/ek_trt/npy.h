// NumPy's .npy, version 1.0, C order, little endian: what goes into an engine and what comes out.
#ifndef EK_TRT_NPY_H
#define EK_TRT_NPY_H

#include <cstdint>
#include <string>
#include <vector>

namespace ek {

using Shape = std::vector<int64_t>;

struct Tensor {
  Shape shape;
  std::vector<float> values;
};

// A file as it is: its dtype and its elements' bytes.
struct NpyFile {
  std::string dtype;  // "<f4", "|u1" or "<i2"
  Shape shape;
  std::string bytes;
};

std::string to_text(const Shape& shape);  // "[4, 3]"
int64_t count_of(const Shape& shape);     // elements; the shape has no negative dimension and does not overflow, see read_npy

// Throws kDamaged: another version, dtype or order, a header that NumPy would not write, or a length that does not fit the shape.
NpyFile read_npy(const std::string& path);
// As read_npy, of bytes that are in memory; `where` is named in the message.
NpyFile parse_npy(const std::string& bytes, const std::string& where);
// The same, and it is float32.
Tensor read_floats(const std::string& path);

std::string npy_of(const Shape& shape, const float* values);
void write_npy(const std::string& path, const Tensor& tensor);

}  // namespace ek
#endif
