// probe json|npy|flow|cache|tolerances|precisions FILE   reads FILE as ek_trt does; 0, or its exit code and sentence
// probe many KIND FOLDER                                 every file of FOLDER, one exit code a line
// probe clocks SYS | power                               what device.h reads
// probe percentile SHARE X...                            run.h's
#include <cstdio>
#include <cstdlib>
#include <string>

#include "device.h"
#include "files.h"
#include "flow.h"
#include "json.h"
#include "lists.h"
#include "npy.h"
#include "run.h"
#include "stop.h"

namespace {

int read(const std::string& kind, const std::string& path) {
  try {
    const std::string text = ek::read_file(path);
    if (kind == "json") puts(ek::Json::parse(text, path).dump().c_str());
    if (kind == "npy") puts(ek::to_text(ek::parse_npy(text, path).shape).c_str());
    if (kind == "flow") ek::read_flow(text, path);
    if (kind == "cache") ek::check_cache(text, 8502, path);
    if (kind == "tolerances") ek::read_tolerances(text, path);
    if (kind == "precisions") ek::read_precisions(text, path);
    return 0;
  } catch (const ek::Stop& stop) {
    fprintf(stderr, "%s\n", stop.what());
    return stop.code;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string kind = argc > 1 ? argv[1] : "";
  if (kind == "clocks") return puts(ek::clocks_khz(argv[2]).dump().c_str()) < 0;
  if (kind == "power") return puts(ek::power_mode().dump().c_str()) < 0;
  if (kind == "percentile") {
    std::vector<double> samples;
    for (int i = 3; i < argc; i++) samples.push_back(atof(argv[i]));
    return printf("%.17g\n", ek::percentile(samples, atof(argv[2]))) < 0;
  }
  if (kind != "many") return read(kind, argv[2]);
  const std::string folder = argv[3];
  for (const std::string& name : ek::list_folder(folder).files) fprintf(stdout, "%s %d\n", name.c_str(), read(argv[2], folder + "/" + name));
  return 0;
}
