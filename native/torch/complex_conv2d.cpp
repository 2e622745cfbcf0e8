// edgekit::complex_conv2d and edgekit::complex_conv_transpose2d for torch, by its stable ABI: the library loads into any torch from
// 2.10 on. It converts and calls edgekit/ops.h. Shapes for tracing and gradients are registered in Python (edgekit/ops.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "edgekit/ops.h"

namespace {

using torch::stable::Tensor;

void require_ok(ek_status status) { STD_TORCH_CHECK(status == EK_OK, ek_last_message()); }

// Packed weights. An object of this is shared by the cache and by calls that still run with it.
class Packed {
 public:
  Packed(const ek_complex_conv2d_shape& shape, const float* w, const float* b) { require_ok(ek_complex_conv2d_pack(&shape, w, b, &packed_)); }
  ~Packed() { ek_complex_conv2d_free(packed_); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  const ek_complex_conv2d* get() const { return packed_; }

 private:
  ek_complex_conv2d* packed_ = nullptr;
};

// Packing takes ten times as long as one frame does, so a call of few frames looks whether these weights were packed before. torch's
// stable ABI has no version counter, and an address may be another tensor's by now: an entry holds a copy of its weights and is used
// only if they are equal to the bit. Reading both costs a tenth of packing.
class Cache {
 public:
  std::shared_ptr<const Packed> packed(const ek_complex_conv2d_shape& shape, const float* w, size_t n_w, const float* b, size_t n_b) {
    std::shared_ptr<const Entry> found = find(shape, w);
    if (found && found->n_b() == (b ? n_b : 0) && same(found->values.data(), w, n_w) && (!b || same(found->values.data() + n_w, b, n_b)))
      return {found, &found->packed};
    auto made = std::make_shared<Entry>(shape, w, n_w, b, b ? n_b : 0);
    keep(made);
    return {made, &made->packed};
  }

 private:
  static constexpr size_t kMaxBytes = size_t{256} << 20;  // of copies; packed weights are about as large again

  struct Entry {
    Entry(const ek_complex_conv2d_shape& shape, const float* w, size_t n_w, const float* b, size_t n_b)
        : shape(shape), address(w), n_w(n_w), values(w, w + n_w), packed(shape, w, b) {
      if (b) values.insert(values.end(), b, b + n_b);
    }
    size_t n_b() const { return values.size() - n_w; }
    size_t bytes() const { return values.size() * sizeof(float); }

    const ek_complex_conv2d_shape shape;
    const float* const address;
    const size_t n_w;
    std::vector<float> values;
    const Packed packed;
  };

  static bool same(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }
  static bool same(const ek_complex_conv2d_shape& a, const ek_complex_conv2d_shape& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

  // The entry made from this address last; it moves to the front.
  std::shared_ptr<const Entry> find(const ek_complex_conv2d_shape& shape, const float* w) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto at = entries_.begin(); at != entries_.end(); ++at)
      if ((*at)->address == w && same((*at)->shape, shape)) {
        entries_.splice(entries_.begin(), entries_, at);
        return entries_.front();
      }
    return nullptr;
  }

  void keep(const std::shared_ptr<const Entry>& made) {
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.remove_if([&](const auto& entry) { return entry->address == made->address && same(entry->shape, made->shape); });
    entries_.push_front(made);
    size_t bytes = 0;
    for (const auto& entry : entries_) bytes += entry->bytes();
    for (; bytes > kMaxBytes && entries_.size() > 1; entries_.pop_back()) bytes -= entries_.back()->bytes();
  }

  std::mutex mutex_;
  std::list<std::shared_ptr<const Entry>> entries_;  // used last first
};

Cache& cache() {
  static Cache* const one = new Cache;  // never destroyed: a thread may still be computing when the process exits
  return *one;
}

constexpr int64_t kFewFrames = 64;  // beyond, packing is lost in the noise and nothing is kept: a training's weights change anyway

void require_plain(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float && tensor.is_cpu(), "edgekit: ", name, " must be float32 on the CPU");
}

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

int32_t narrow(int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= INT32_MIN && value <= INT32_MAX, "edgekit: ", name, " is ", value);
  return static_cast<int32_t>(value);
}

Tensor convolve(bool transposed, const Tensor& x_any, const Tensor& w_any, const std::optional<Tensor>& b_any, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding) {
  require_plain(x_any, "x");
  require_plain(w_any, "w");
  STD_TORCH_CHECK(x_any.dim() == 4 && w_any.dim() == 5 && w_any.size(0) == 2, "edgekit: x must be [n, 2*c_in, f, t] and w [2, ., ., kf, kt]");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 4, "edgekit: stride has two numbers and padding four");
  ek_complex_conv2d_shape shape{};
  shape.transposed = transposed;
  shape.c_in = narrow(w_any.size(transposed ? 1 : 2), "c_in");
  shape.c_out = narrow(w_any.size(transposed ? 2 : 1), "c_out");
  shape.f = narrow(x_any.size(2), "f");
  for (int axis = 0; axis < 2; axis++) {
    shape.kernel[axis] = narrow(w_any.size(3 + axis), "kernel");
    shape.stride[axis] = narrow(stride[axis], "stride");
  }
  for (int side = 0; side < 4; side++) shape.padding[side] = narrow(padding[side], "padding");
  STD_TORCH_CHECK(x_any.size(1) == 2 * int64_t{shape.c_in}, "edgekit: x has ", x_any.size(1), " channels, w reads 2*", shape.c_in);
  if (b_any) {
    require_plain(*b_any, "b");
    STD_TORCH_CHECK(b_any->dim() == 2 && b_any->size(0) == 2 && b_any->size(1) == shape.c_out, "edgekit: b must be [2, ", shape.c_out, "]");
  }

  const Tensor x = torch::stable::contiguous(x_any), w = torch::stable::contiguous(w_any);
  std::optional<Tensor> b;
  if (b_any) b = torch::stable::contiguous(*b_any);
  const int64_t n = x.size(0), t = x.size(3);
  int64_t f_out = 0, t_out = 0;
  require_ok(ek_complex_conv2d_output(&shape, t, &f_out, &t_out));
  const std::vector<int64_t> size = {n, 2 * int64_t{shape.c_out}, f_out, t_out};
  Tensor y = torch::stable::new_empty(x, size);

  const float* weights = floats(w);
  const float* bias = b ? floats(*b) : nullptr;
  const std::shared_ptr<const Packed> packed = n * t_out <= kFewFrames ? cache().packed(shape, weights, w.numel(), bias, b ? b->numel() : 0)
                                                                       : std::make_shared<const Packed>(shape, weights, bias);
  const float* from = floats(x);
  float* to = static_cast<float*>(y.mutable_data_ptr());
  // Ranges of frames for torch's own threads; 16 is what the library moves at a time.
  torch::stable::parallel_for(0, n * t_out, 16, [&](int64_t first, int64_t last) {
    require_ok(ek_complex_conv2d_run(packed->get(), n, t, from, to, first, last));
  });
  return y;
}

Tensor complex_conv2d(Tensor x, Tensor w, std::optional<Tensor> b, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  return convolve(false, x, w, b, stride, padding);
}

Tensor complex_conv_transpose2d(Tensor x, Tensor w, std::optional<Tensor> b, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  return convolve(true, x, w, b, stride, padding);
}

}  // namespace

STABLE_TORCH_LIBRARY(edgekit, m) {
  m.def("complex_conv2d(Tensor x, Tensor w, Tensor? b, int[] stride, int[] padding) -> Tensor");
  m.def("complex_conv_transpose2d(Tensor x, Tensor w, Tensor? b, int[] stride, int[] padding) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(edgekit, CPU, m) {
  m.impl("complex_conv2d", TORCH_BOX(&complex_conv2d));
  m.impl("complex_conv_transpose2d", TORCH_BOX(&complex_conv_transpose2d));
}
