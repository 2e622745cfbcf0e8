// The part of device.h that needs neither TensorRT nor CUDA.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "device.h"

namespace ek {
namespace {

namespace fs = std::filesystem;

// The number in a file, 0 when there is none.
double number_in(const fs::path& path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? value : 0;
}

// Xavier's GPU is a devfreq device named like 17000000.gv11b, Orin's 17000000.ga10b, older kernels have gpu.0.
double gpu_hz(const fs::path& sys) {
  for (const fs::path& folder : {sys / "class/devfreq", sys / "devices/gpu.0/devfreq"}) {
    std::error_code error;
    for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator(); entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      for (const char* known : {"gv11b", "ga10b", "gp10b", "gpu"}) {
        if (name.find(known) == std::string::npos) continue;
        if (const double hz = number_in(entry->path() / "cur_freq")) return hz;
      }
    }
  }
  return 0;
}

}  // namespace

Json power_mode() {
  FILE* pipe = popen("nvpmodel -q 2>/dev/null", "r");
  if (!pipe) return Json();
  Json mode;
  char line[256];
  while (fgets(line, sizeof line, pipe)) {
    const std::string text = line, title = "NV Power Mode:";
    const size_t at = text.find(title);
    if (at == std::string::npos) continue;
    const size_t start = text.find_first_not_of(" \t", at + title.size()), end = text.find_last_not_of(" \t\r\n");
    if (start != std::string::npos && end != std::string::npos && end >= start) mode = Json(text.substr(start, end - start + 1));
  }
  pclose(pipe);
  return mode;
}

Json clocks_khz(const std::string& sys) {
  Json clocks = Json::object();
  const fs::path root = sys;
  if (const double hz = gpu_hz(root)) clocks.set("gpu", hz / 1000);
  if (const double khz = number_in(root / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")) clocks.set("cpu", khz);
  if (const double hz = number_in(root / "kernel/debug/bpmp/debug/clk/emc/rate")) clocks.set("emc", hz / 1000);
  return clocks;
}

}  // namespace ek
