// `ek_trt run`: clips through engines, outputs and times to files.
#ifndef EK_TRT_RUN_H
#define EK_TRT_RUN_H

#include <string>
#include <vector>

#include "json.h"

namespace ek {

struct RunJob {
  std::string engine;         // one engine's file, or
  std::string flow, engines;  // a flow and the folder with <engine>/model.engine
  std::string inputs, outputs, report;
  int warm_up = 3, repeat = 1, dla_core = -1;
};

// Writes the outputs, then the report. Throws kOutOfTolerance, after both are written, when an output is NaN or infinite.
void run_clips(const RunJob& job);

// The value below which at least `share` of the samples lie, itself one of them (nearest rank). Samples in any order, at least one.
double percentile(std::vector<double> samples, double share);

// {"p50", "p99", "mean", "n"}
Json latency(const std::vector<double>& milliseconds);

}  // namespace ek
#endif
