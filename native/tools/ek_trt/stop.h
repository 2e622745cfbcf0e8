// How ek_trt ends where it cannot go on: a sentence for stderr and an exit code.
#ifndef EK_TRT_STOP_H
#define EK_TRT_STOP_H

#include <stdexcept>
#include <string>

namespace ek {

enum ExitCode {
  kOk = 0,
  kBug = 1,
  kUsage = 2,
  kOutOfTolerance = 3,
  kNotAsAsked = 4,  // the builder, or the engine that it made, is not what was asked for
  kMissing = 5,     // a tool, a device or a version is missing, or the disk takes nothing
  kDamaged = 6,
  kInterrupted = 130,
};

// Thrown by our own code only and caught in main; nothing is thrown through TensorRT's callbacks.
struct Stop : std::runtime_error {
  Stop(ExitCode code, const std::string& sentence) : std::runtime_error(sentence), code(code) {}
  ExitCode code;
};

}  // namespace ek
#endif
