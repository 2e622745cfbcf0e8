// EdgekitComplexConv2d and EdgekitComplexConvTranspose2d for OpenVINO, and the way to them from ONNX (domain `edgekit`, operators
// ComplexConv2d and ComplexConvTranspose2d). Inputs X [n, 2*c_in, f, t], W [2, ., ., kf, kt], B [2, c_out], all float32; attributes
// `strides` (2) and `pads` (4) as in edgekit/ops.h. It converts and calls that header.
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>

#include "edgekit/ops.h"

namespace {

class Packed {
 public:
  Packed(const ek_complex_conv2d_shape& shape, const float* w, const float* b) : f(shape.f) {
    OPENVINO_ASSERT(ek_complex_conv2d_pack(&shape, w, b, &packed_) == EK_OK, ek_last_message());
  }
  ~Packed() { ek_complex_conv2d_free(packed_); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  const ek_complex_conv2d* get() const { return packed_; }

  const int32_t f;

 private:
  ek_complex_conv2d* packed_ = nullptr;
};

int32_t narrow(int64_t value) {
  OPENVINO_ASSERT(value >= INT32_MIN && value <= INT32_MAX, "edgekit: ", value, " is beyond 32 bits");
  return static_cast<int32_t>(value);
}

class ComplexConv : public ov::op::Op {
 public:
  ComplexConv(bool is_transposed) : is_transposed_(is_transposed) {}
  ComplexConv(bool is_transposed, const ov::OutputVector& inputs, std::vector<int64_t> strides, std::vector<int64_t> pads)
      : Op(inputs), is_transposed_(is_transposed), strides_(std::move(strides)), pads_(std::move(pads)) {}

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("strides", strides_);
    visitor.on_attribute("pads", pads_);
    return true;
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 3, "three inputs are needed: X, W and B");
    NODE_VALIDATION_CHECK(this, strides_.size() == 2 && pads_.size() == 4, "`strides` has two numbers and `pads` four");
    for (size_t i = 0; i < 3; i++)
      NODE_VALIDATION_CHECK(this, get_input_element_type(i).compatible(ov::element::f32), "input ", i, " is ", get_input_element_type(i),
                            "; it must be f32");
    const ov::PartialShape x = get_input_partial_shape(0), w = get_input_partial_shape(1), b = get_input_partial_shape(2);
    NODE_VALIDATION_CHECK(this, x.rank().compatible(4) && w.rank().compatible(5) && b.rank().compatible(2), "X is ", x, ", W is ", w, ", B is ", b,
                          "; [n, 2*c_in, f, t], [2, ., ., kf, kt] and [2, c_out] are needed");
    ov::PartialShape y = ov::PartialShape::dynamic(4);
    if (x.rank().is_static()) y[0] = x[0];
    if (w.rank().is_static()) {
      y[1] = w[is_transposed_ ? 2 : 1] * 2;
      const ov::Dimension c_in = w[is_transposed_ ? 1 : 2];
      if (x.rank().is_static())
        NODE_VALIDATION_CHECK(this, x[1].compatible(c_in * 2), "X ", x, " has ", x[1], " channels, W ", w, " reads 2*", c_in);
    }
    if (x.rank().is_static() && x[2].is_static() && w.is_static()) {
      // Time may be dynamic: frequencies come out the same for any t that is long enough.
      const ek_complex_conv2d_shape shape = shape_of(x[2].get_length(), w.to_shape());
      int64_t f_out = 0, t_out = 0;
      NODE_VALIDATION_CHECK(this, ek_complex_conv2d_output(&shape, x[3].is_static() ? x[3].get_length() : 1 << 20, &f_out, &t_out) == EK_OK,
                            ek_last_message());
      y[2] = f_out;
      if (x[3].is_static()) y[3] = t_out;
    }
    set_output_type(0, ov::element::f32, y);
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape x = inputs[0].get_shape(), w = inputs[1].get_shape();
    const ek_complex_conv2d_shape shape = shape_of(int64_t(x[2]), w);
    OPENVINO_ASSERT(x[1] == 2 * size_t(shape.c_in) && w[0] == 2 && inputs[2].get_shape() == (ov::Shape{2, size_t(shape.c_out)}), "edgekit: X is ", x,
                    ", W is ", w, ", B is ", inputs[2].get_shape());
    int64_t f_out = 0, t_out = 0;
    const int64_t n = int64_t(x[0]), t = int64_t(x[3]);
    OPENVINO_ASSERT(ek_complex_conv2d_output(&shape, t, &f_out, &t_out) == EK_OK, ek_last_message());
    outputs[0].set_shape({x[0], 2 * size_t(shape.c_out), size_t(f_out), size_t(t_out)});
    const std::shared_ptr<const Packed> packed = packed_for(shape, inputs[1].data<const float>(), inputs[2].data<const float>());
    OPENVINO_ASSERT(ek_complex_conv2d_run(packed->get(), n, t, inputs[0].data<const float>(), outputs[0].data<float>(), 0, n * t_out) == EK_OK,
                    ek_last_message());
    return true;
  }

 protected:
  const std::vector<int64_t>& strides() const { return strides_; }
  const std::vector<int64_t>& pads() const { return pads_; }

 private:
  ek_complex_conv2d_shape shape_of(int64_t f, const ov::Shape& w) const {
    ek_complex_conv2d_shape shape{};
    shape.transposed = is_transposed_;
    shape.c_in = narrow(int64_t(w[is_transposed_ ? 1 : 2]));
    shape.c_out = narrow(int64_t(w[is_transposed_ ? 2 : 1]));
    shape.f = narrow(f);
    for (size_t axis = 0; axis < 2; axis++) {
      shape.kernel[axis] = narrow(int64_t(w[3 + axis]));
      shape.stride[axis] = narrow(strides_[axis]);
    }
    for (size_t side = 0; side < 4; side++) shape.padding[side] = narrow(pads_[side]);
    return shape;
  }

  bool has_constant_weights() const {
    for (size_t i = 1; i < 3; i++)
      if (!ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(i))) return false;
    return true;
  }

  // Constant weights are packed once a node; they depend on x's frequencies too, should those ever change.
  std::shared_ptr<const Packed> packed_for(const ek_complex_conv2d_shape& shape, const float* w, const float* b) const {
    if (!has_constant_weights()) return std::make_shared<const Packed>(shape, w, b);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!packed_ || packed_->f != shape.f) packed_ = std::make_shared<const Packed>(shape, w, b);
    return packed_;
  }

  const bool is_transposed_;
  std::vector<int64_t> strides_, pads_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Packed> packed_;
};

class EdgekitComplexConv2d : public ComplexConv {
 public:
  OPENVINO_OP("EdgekitComplexConv2d");
  EdgekitComplexConv2d() : ComplexConv(false) {}
  EdgekitComplexConv2d(const ov::OutputVector& inputs, std::vector<int64_t> strides, std::vector<int64_t> pads)
      : ComplexConv(false, inputs, std::move(strides), std::move(pads)) {
    constructor_validate_and_infer_types();
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<EdgekitComplexConv2d>(inputs, strides(), pads());
  }
};

class EdgekitComplexConvTranspose2d : public ComplexConv {
 public:
  OPENVINO_OP("EdgekitComplexConvTranspose2d");
  EdgekitComplexConvTranspose2d() : ComplexConv(true) {}
  EdgekitComplexConvTranspose2d(const ov::OutputVector& inputs, std::vector<int64_t> strides, std::vector<int64_t> pads)
      : ComplexConv(true, inputs, std::move(strides), std::move(pads)) {
    constructor_validate_and_infer_types();
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<EdgekitComplexConvTranspose2d>(inputs, strides(), pads());
  }
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<EdgekitComplexConv2d>>(),
    std::make_shared<ov::OpExtension<EdgekitComplexConvTranspose2d>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<EdgekitComplexConv2d>>("ComplexConv2d", "edgekit"),
    std::make_shared<ov::frontend::onnx::OpExtension<EdgekitComplexConvTranspose2d>>("ComplexConvTranspose2d", "edgekit"),
}));
