// The text lists of a kit: one entry a line, fields parted by a tab.
#ifndef EK_TRT_LISTS_H
#define EK_TRT_LISTS_H

#include <string>
#include <utility>
#include <vector>

namespace ek {

// Lines of fields. A line that starts with `#` is a comment when `comments` is set. Throws kDamaged: no closing newline, an empty line, a NUL.
struct Line {
  size_t number;
  std::vector<std::string> fields;
};
std::vector<Line> read_lines(const std::string& text, const std::string& where, bool comments = false);

// precisions.txt: `<layer>\t<int8|fp16|fp32>`, no layer twice.
std::vector<std::pair<std::string, std::string>> read_precisions(const std::string& text, const std::string& where);

// int8_tensors.txt: a tensor a line, none twice.
std::vector<std::string> read_names(const std::string& text, const std::string& where);

// tolerance: `<tensor>\t<max_abs>\t<min_sqnr_db>`; `-` is no limit.
struct Tolerance {
  std::string tensor;
  double max_abs;       // +inf: no limit
  double min_sqnr_db;   // -inf: no limit
};
std::vector<Tolerance> read_tolerances(const std::string& text, const std::string& where);

// A calibration cache is one that TensorRT `version` (such as 8502) reads. Throws kMissing for another version, kDamaged for anything else.
// TensorRT itself would skip a line that it cannot read and calibrate anew for a header that it does not like.
void check_cache(const std::string& text, int version, const std::string& where);

double read_number(const std::string& word, const std::string& where);     // finite
long read_integer(const std::string& word, long low, long high, const std::string& where);
std::vector<std::string> split(const std::string& text, char at);

}  // namespace ek
#endif
