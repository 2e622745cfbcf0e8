// A flow: which engine gets what, how often, and what its states were last time. edgekit/flow.py (run_flow) is the definition.
//
// One statement a line, fields parted by one tab, `#` starts a comment:
//     input   NAME  4,3,8,64,64    a tensor that comes from outside, without batch axis
//     stft    FROM  TO  WIN  HOP  NFFT  DELAY  CHUNK
//     step    ENGINE               what follows belongs to it
//     feed    PORT  TENSOR         once
//     each    PORT  TENSOR         a run for every index of TENSOR's first axis
//     stack   PORT  TENSOR         collected over the runs on a new first axis
//     give    PORT  TENSOR         of the last run
//     state   IN  OUT  INIT        output OUT of a run is input IN of the next; INIT fills it when a clip starts
//     masked_istft  SPECTRUM  MASKS  TO  WIN  HOP  NFFT  DELAY  CHUNK  E|C|R  SAMPLES
//     match   SPEECH  NOISY  TO    edgekit/snr.py has the definitions from here on
//     snr     SPEECH  NOISY  TO  LOW  HIGH    of one window; a moving average over windows is the stream's
//     alpha   SNR  TO  AT_KNEE  KNEE_DB  FULL_DB  FLOOR
//     blend   SHARE  OF  REST  TO
//     normalize  FROM  TO  EPS
//     output  NAME
// What the host computes runs as soon as the tensors that it reads are there, in the order of its lines.
// Engine tensors have batch 1 in front, flow tensors have not.
#ifndef EK_TRT_FLOW_H
#define EK_TRT_FLOW_H

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "spectrum.h"

namespace ek {

struct Wire {
  std::string port, tensor;
};
struct State {
  std::string in, out;
  float init;
};
struct Step {
  std::string engine;
  std::vector<Wire> feed, each, stack, give;
  std::vector<State> states;
};
struct HostStep {
  std::string what;
  std::vector<std::string> reads;
  std::string to;
  std::vector<double> numbers;
  Stft sizes;
  char mask = 0;
  int64_t samples = 0;
};
struct Flow {
  std::vector<Port> inputs;
  std::vector<HostStep> host;
  std::vector<Step> steps;
  std::vector<std::string> outputs;
};

Flow read_flow(const std::string& text, const std::string& where);

using Engines = std::map<std::string, std::unique_ptr<Engine>>;
using Tensors = std::map<std::string, Tensor>;
// Runs an engine; the one place where a run is timed.
using Run = std::function<void(const std::string& engine, const Feeds& feeds, Outputs* outputs)>;

// Throws kUsage where the flow asks for what is not there or does not fit.
Tensors run_flow(const Flow& flow, const Engines& engines, const Tensors& inputs, const Run& run);

}  // namespace ek
#endif
