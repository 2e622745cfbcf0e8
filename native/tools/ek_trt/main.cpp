// ek_trt: builds, runs and compares TensorRT engines on a device, without Python. What it does stands in kUsage below.
//
// One source for TensorRT 8.5, 10 and 11; shell.h holds what differs. `make EK_TRT_WITHOUT_TENSORRT=1` gives a program that has `compare` only.
#include <cstdio>
#include <exception>
#include <map>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "build.h"
#include "compare.h"
#include "device.h"
#include "files.h"
#include "lists.h"
#include "run.h"
#include "stop.h"

namespace {

using ek::Stop;

constexpr const char* kUsage =
    R"(usage: ek_trt version | build | run | compare, with their options

ek_trt version
    One line of JSON: the library's and the headers' TensorRT, CUDA's runtime and driver, the device, its SM and memory.

ek_trt build --onnx FILE --engine OUT --layers OUT.json --report OUT.json
             [--precisions FILE] [--fp16] [--int8 --cache FILE --int8-tensors FILE] [--strongly-typed] [--tf32]
             [--own-kernels] [--workspace MIB] [--timing-cache FILE] [--dla CORE [--gpu-fallback]]
    --precisions    lines `LAYER<tab>int8|fp16|fp32`, obeyed; a layer that is not there is an error
    --cache         TensorRT 8 only: the calibration cache; nothing is ever calibrated here
    --int8-tensors  names, a line each: tensors of int8 layers; one without a scale is an error
    --strongly-typed  TensorRT 10: the network's own types (11 has nothing else)
    --tf32          fp32 may round its factors to TF32
    --own-kernels   TensorRT's own alone: neither cuBLAS nor cuDNN is loaded
    --timing-cache  read if it is there, and written
    Layers are what TensorRT's inspector says. TensorRT's log goes to stderr. The engine is written last.

ek_trt run (--engine FILE | --flow FILE --engines DIR) --inputs DIR --outputs DIR --report OUT.json [--warm-up N] [--repeat N] [--dla CORE]
    DIR/<clip>/<tensor>.npy in and out, float32, C order; integers come with decode.txt (clips.h). flow.h says what a flow file is;
    engines are DIR/<engine>/model.engine. Engines' times are between CUDA events, a window's from host buffers to host buffers.
    An output that is not finite is written, and ends with 3.

ek_trt compare --reference DIR --outputs DIR --tolerance FILE --report OUT.json
    Tolerances are lines `TENSOR<tab>MAX_ABS<tab>MIN_SQNR_DB`, `-` for no limit, over all clips together. NaN fails, and so does a missing or another file.

Exit status: 0 done, 1 a fault of this program, 2 the command line, 3 out of tolerance, 4 the builder did not do what was asked,
5 a tool, device or version is missing or nothing can be written, 6 a file is damaged, 130 interrupted.
Files appear whole, by rename.
)";

// Options as they were given: `--name value`, or `--name` alone for those in kSwitches.
class Options {
 public:
  Options(int argc, char** argv, const std::set<std::string>& names, const std::set<std::string>& switches) {
    for (int i = 2; i < argc; i++) {
      const std::string name = argv[i];
      const bool is_switch = switches.count(name) > 0;
      if (!is_switch && !names.count(name)) throw Stop(ek::kUsage, "unknown option `" + name + "`; see ek_trt --help");
      if (!is_switch && i + 1 == argc) throw Stop(ek::kUsage, name + " needs a value");
      if (!given_.emplace(name, is_switch ? "" : argv[++i]).second) throw Stop(ek::kUsage, name + " stands there twice");
    }
  }

  bool has(const std::string& name) const { return given_.count(name) > 0; }
  std::string text(const std::string& name) const {
    const auto found = given_.find(name);
    return found == given_.end() ? "" : found->second;
  }
  std::string needed(const std::string& name) const {
    if (text(name).empty()) throw Stop(ek::kUsage, name + " is missing");
    return text(name);
  }
  long number(const std::string& name, long otherwise, long low, long high) const {
    if (!has(name)) return otherwise;
    try {
      return ek::read_integer(text(name), low, high, name + " ");
    } catch (const Stop& stop) {
      throw Stop(ek::kUsage, stop.what());
    }
  }

 private:
  std::map<std::string, std::string> given_;
};

void compare(int argc, char** argv) {
  const Options options(argc, argv, {"--reference", "--outputs", "--tolerance", "--report"}, {});
  const std::string reference = options.needed("--reference"), outputs = options.needed("--outputs"), report = options.needed("--report"), tolerance = options.needed("--tolerance");
  ek::forget_file(report);
  const ek::Comparison found = ek::compare_folders(reference, outputs, ek::read_tolerances(ek::read_file(tolerance), tolerance));
  ek::write_file(report, found.report.dump() + "\n");
  if (found.failed.empty()) return;
  for (size_t i = 1; i < found.failed.size(); i++) fprintf(stderr, "ek_trt: %s\n", found.failed[i].c_str());
  throw Stop(ek::kOutOfTolerance, found.failed[0]);
}

#ifdef EK_TRT_WITHOUT_TENSORRT

void need_tensorrt(const std::string& command) {
  throw Stop(ek::kMissing, "`" + command + "`: this ek_trt was made without TensorRT (EK_TRT_WITHOUT_TENSORRT=1) and has `compare` only");
}
void version(int, char**) { need_tensorrt("version"); }
void build(int, char**) { need_tensorrt("build"); }
void run(int, char**) { need_tensorrt("run"); }

#else

void version(int argc, char** argv) {
  const Options options(argc, argv, {}, {});
  printf("%s\n", ek::describe_device().dump().c_str());
}

void build(int argc, char** argv) {
  const Options options(argc, argv,
                        {"--onnx", "--engine", "--layers", "--report", "--precisions", "--cache", "--int8-tensors", "--workspace", "--timing-cache", "--dla"},
                        {"--fp16", "--int8", "--strongly-typed", "--tf32", "--own-kernels", "--gpu-fallback"});
  ek::BuildJob job;
  job.onnx = options.needed("--onnx");
  job.engine = options.needed("--engine");
  job.layers = options.needed("--layers");
  job.report = options.needed("--report");
  job.precisions = options.text("--precisions");
  job.cache = options.text("--cache");
  job.int8_tensors = options.text("--int8-tensors");
  job.timing_cache = options.text("--timing-cache");
  job.fp16 = options.has("--fp16");
  job.int8 = options.has("--int8");
  job.strongly_typed = options.has("--strongly-typed");
  job.tf32 = options.has("--tf32");
  job.own_kernels = options.has("--own-kernels");
  job.gpu_fallback = options.has("--gpu-fallback");
  job.workspace_mib = options.number("--workspace", 0, 1, 1 << 20);
  job.dla_core = static_cast<int>(options.number("--dla", -1, 0, 15));
  const std::string problem = ek::problem_of(job);
  if (!problem.empty()) throw Stop(ek::kUsage, problem);
  ek::build_engine(job);
}

void run(int argc, char** argv) {
  const Options options(argc, argv, {"--engine", "--flow", "--engines", "--inputs", "--outputs", "--report", "--warm-up", "--repeat", "--dla"}, {});
  ek::RunJob job;
  job.engine = options.text("--engine");
  job.flow = options.text("--flow");
  job.engines = options.text("--engines");
  if (job.engine.empty() == job.flow.empty() || job.flow.empty() != job.engines.empty()) throw Stop(ek::kUsage, "either --engine, or --flow and --engines are needed");
  job.inputs = options.needed("--inputs");
  job.outputs = options.needed("--outputs");
  job.report = options.needed("--report");
  job.warm_up = static_cast<int>(options.number("--warm-up", job.warm_up, 0, 1000000));
  job.repeat = static_cast<int>(options.number("--repeat", job.repeat, 1, 1000000));
  job.dla_core = static_cast<int>(options.number("--dla", -1, 0, 15));
  ek::run_clips(job);
}

#endif

int stop(int code, const char* sentence) {
  fprintf(stderr, "ek_trt: %s\n", sentence);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  const std::map<std::string, void (*)(int, char**)> commands = {{"version", version}, {"build", build}, {"run", run}, {"compare", compare}};
  if (command == "--help" || command == "-h") return printf("%s", kUsage) < 0;
  const auto found = commands.find(command);
  if (found == commands.end()) return stop(ek::kUsage, command.empty() ? "a command is missing; see ek_trt --help" : ("unknown command `" + command + "`; see ek_trt --help").c_str());
  ek::leave_cleanly_on_signals();
  try {
    found->second(argc, argv);
    return ek::kOk;
  } catch (const Stop& error) {
    return stop(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return stop(ek::kMissing, "no memory is left");
  } catch (const std::exception& error) {
    return stop(ek::kBug, error.what());
  } catch (...) {
    return stop(ek::kBug, "something unknown was thrown");
  }
}
