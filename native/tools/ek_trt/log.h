// TensorRT's log: to stderr as it comes, and what was wrong is kept.
#ifndef EK_TRT_LOG_H
#define EK_TRT_LOG_H

#include <NvInfer.h>

#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

namespace ek {

class Log : public nvinfer1::ILogger {
 public:
  explicit Log(bool verbose = false) : verbose_(verbose) {}

  // TensorRT calls this from several threads.
  void log(Severity severity, const char* message) noexcept override {
    if (severity == Severity::kVERBOSE && !verbose_) return;
    const char* const letters = "FEWIV";
    const std::lock_guard<std::mutex> lock(mutex_);
    fprintf(stderr, "[%c] %s\n", letters[static_cast<int>(severity)], message);
    if (severity > Severity::kWARNING) return;
    try {
      std::vector<std::string>& list = severity == Severity::kWARNING ? warnings_ : errors_;
      list.push_back(message);
    } catch (...) {
      is_incomplete_ = true;  // no memory for it: what is checked in the warnings can no longer be checked
    }
  }

  // To be read while TensorRT is not working.
  const std::vector<std::string>& warnings() const { return warnings_; }
  const std::vector<std::string>& errors() const { return errors_; }
  bool is_incomplete() const { return is_incomplete_; }
  // Why something failed; without a GPU, 8.5 says it in a warning.
  std::string last_error() const { return !errors_.empty() ? errors_.back() : !warnings_.empty() ? warnings_.back() : "TensorRT gave no reason"; }

 private:
  bool verbose_, is_incomplete_ = false;
  std::mutex mutex_;
  std::vector<std::string> warnings_, errors_;
};

// One for the process: the first logger that TensorRT sees is used for everything.
Log& the_log();

}  // namespace ek
#endif
