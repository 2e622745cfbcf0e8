// Outputs against references, over all clips together, as edgekit/compare.py defines it.
#ifndef EK_TRT_COMPARE_H
#define EK_TRT_COMPARE_H

#include <string>
#include <vector>

#include "json.h"
#include "lists.h"

namespace ek {

struct Comparison {
  Json report;
  std::vector<std::string> failed;  // a sentence each, the worst of every tensor; empty when all is within tolerance
};

// Folders hold <clip>/<tensor>.npy, float32. The reference must hold exactly the tolerances' tensors for every clip (else kDamaged);
// where the outputs have more, fewer or others, that fails the comparison.
Comparison compare_folders(const std::string& reference, const std::string& outputs, const std::vector<Tolerance>& tolerances);

}  // namespace ek
#endif
