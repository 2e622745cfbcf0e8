// One TensorRT engine, loaded and ready: host buffers in, host buffers out. No header of TensorRT or CUDA is needed to use it.
#ifndef EK_TRT_ENGINE_H
#define EK_TRT_ENGINE_H

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "npy.h"

namespace ek {

struct Port {
  std::string name;
  Shape shape;
};

struct View {  // somebody else's floats
  const float* values;
  Shape shape;
};
using Feeds = std::map<std::string, View>;
using Outputs = std::map<std::string, Tensor>;

class Engine {
 public:
  // Throws kDamaged when TensorRT does not take the file, kNotAsAsked for tensors that are not float32, linear and of a fixed shape.
  // dla_core < 0: no DLA.
  explicit Engine(const std::string& path, int dla_core = -1);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const std::vector<Port>& inputs() const;
  const std::vector<Port>& outputs() const;

  // Runs once and waits. `feeds` has every input, in its shape, and nothing else (throws kUsage).
  void run(const Feeds& feeds, Outputs* outputs);

  double device_ms() const;  // of the last run: between two CUDA events around the inference, without copies
  double load_ms() const;
  int64_t engine_bytes() const;
  int64_t activation_bytes() const;  // what TensorRT says that a context needs
  int64_t memory_drop() const;       // by how much free device memory fell while it was loaded; negative when others freed more

 private:
  struct Inside;
  std::unique_ptr<Inside> inside_;
};

}  // namespace ek
#endif
