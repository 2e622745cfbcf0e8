#include "lists.h"

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>

#include "files.h"
#include "stop.h"

namespace ek {
namespace {

std::string at_line(const std::string& where, size_t number) { return where + ":" + std::to_string(number) + ": "; }

void need_fields(const Line& line, size_t count, const std::string& where) {
  if (line.fields.size() != count) {
    throw Stop(kDamaged, at_line(where, line.number) + std::to_string(line.fields.size()) + " fields parted by tabs, expected " + std::to_string(count));
  }
}

void need_new(std::set<std::string>* seen, const Line& line, const std::string& where) {
  if (!seen->insert(line.fields[0]).second) throw Stop(kDamaged, at_line(where, line.number) + "`" + line.fields[0] + "` stands there twice");
}

}  // namespace

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t end; (end = text.find(at, start)) != std::string::npos; start = end + 1) parts.push_back(text.substr(start, end - start));
  parts.push_back(text.substr(start));
  return parts;
}

std::vector<Line> read_lines(const std::string& text, const std::string& where, bool comments) {
  std::vector<Line> lines;
  if (text.empty()) return lines;
  if (text.find('\0') != std::string::npos) throw Stop(kDamaged, where + ": no text file");
  if (text.back() != '\n') throw Stop(kDamaged, where + ": the last line has no end; the file is cut off");
  const std::vector<std::string> all = split(text.substr(0, text.size() - 1), '\n');
  for (size_t i = 0; i < all.size(); i++) {
    if (comments && (all[i].empty() || all[i][0] == '#')) continue;
    Line line{i + 1, split(all[i], '\t')};
    for (const std::string& field : line.fields) {
      if (field.empty()) throw Stop(kDamaged, at_line(where, i + 1) + "an empty field");
    }
    lines.push_back(line);
  }
  return lines;
}

std::vector<std::pair<std::string, std::string>> read_precisions(const std::string& text, const std::string& where) {
  std::vector<std::pair<std::string, std::string>> made;
  std::set<std::string> seen;
  for (const Line& line : read_lines(text, where)) {
    need_fields(line, 2, where);
    need_new(&seen, line, where);
    const std::string& type = line.fields[1];
    if (type != "int8" && type != "fp16" && type != "fp32") throw Stop(kDamaged, at_line(where, line.number) + "`" + type + "`, expected int8, fp16 or fp32");
    made.emplace_back(line.fields[0], type);
  }
  return made;
}

std::vector<std::string> read_names(const std::string& text, const std::string& where) {
  std::vector<std::string> made;
  std::set<std::string> seen;
  for (const Line& line : read_lines(text, where)) {
    need_fields(line, 1, where);
    need_new(&seen, line, where);
    made.push_back(line.fields[0]);
  }
  return made;
}

std::vector<Tolerance> read_tolerances(const std::string& text, const std::string& where) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Tolerance> made;
  std::set<std::string> seen;
  for (const Line& line : read_lines(text, where)) {
    need_fields(line, 3, where);
    need_new(&seen, line, where);
    const std::string here = at_line(where, line.number);
    if (!is_file_name(line.fields[0])) throw Stop(kDamaged, here + "tensor name `" + line.fields[0] + "` cannot be a file");
    Tolerance tolerance{line.fields[0], kInfinity, -kInfinity};
    if (line.fields[1] != "-") tolerance.max_abs = read_number(line.fields[1], here);
    if (line.fields[2] != "-") tolerance.min_sqnr_db = read_number(line.fields[2], here);
    if (tolerance.max_abs < 0) throw Stop(kDamaged, here + "max_abs " + line.fields[1] + " is negative");
    made.push_back(tolerance);
  }
  if (made.empty()) throw Stop(kDamaged, where + ": no tolerance stands there, so anything would pass");
  return made;
}

void check_cache(const std::string& text, int version, const std::string& where) {
  const std::string header = "TRT-" + std::to_string(version) + "-EntropyCalibration2";
  if (text.empty() || text.back() != '\n') throw Stop(kDamaged, where + ": the last line has no end; the file is cut off");
  const std::vector<std::string> lines = split(text.substr(0, text.size() - 1), '\n');
  if (lines[0] != header) {
    const bool is_other_version = lines[0].compare(0, 4, "TRT-") == 0;
    throw Stop(is_other_version ? kMissing : kDamaged, at_line(where, 1) + "`" + lines[0].substr(0, 60) + "`, this TensorRT reads `" + header + "` only");
  }
  std::set<std::string> seen;
  for (size_t i = 1; i < lines.size(); i++) {
    const size_t colon = lines[i].rfind(": ");
    const std::string hex = colon == std::string::npos ? "" : lines[i].substr(colon + 2);
    if (colon == 0 || hex.size() != 8 || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
      throw Stop(kDamaged, at_line(where, i + 1) + "`" + lines[i].substr(0, 60) + "` is not `name: 8 hex digits`");
    }
    const uint32_t bits = static_cast<uint32_t>(strtoul(hex.c_str(), nullptr, 16));
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    if (!(scale > 0 && std::isfinite(scale))) throw Stop(kDamaged, at_line(where, i + 1) + "the scale is not a positive number");
    if (!seen.insert(lines[i].substr(0, colon)).second) throw Stop(kDamaged, at_line(where, i + 1) + "the tensor stands there twice");
  }
}

double read_number(const std::string& word, const std::string& where) {
  char* end = nullptr;
  const double value = strtod(word.c_str(), &end);
  if (word.empty() || isspace(static_cast<unsigned char>(word[0])) || *end || !std::isfinite(value)) throw Stop(kDamaged, where + "`" + word.substr(0, 40) + "` is no number");
  return value;
}

long read_integer(const std::string& word, long low, long high, const std::string& where) {
  char* end = nullptr;
  errno = 0;
  const long value = strtol(word.c_str(), &end, 10);
  if (word.empty() || word.find_first_not_of("-0123456789") != std::string::npos || *end || errno || value < low || value > high) {
    throw Stop(kDamaged, where + "`" + word.substr(0, 40) + "` is no whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

}  // namespace ek
