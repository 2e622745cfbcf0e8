// build.h for the toy engine: nothing is built.
#include "build.h"

#include "stop.h"

namespace ek {

std::string problem_of(const BuildJob&) { return ""; }
void build_engine(const BuildJob&) { throw Stop(kMissing, "toy engines are written by hand"); }

}  // namespace ek
