#include "clips.h"

#include <cstring>

#include "files.h"
#include "lists.h"
#include "stop.h"

namespace ek {
namespace {

struct Decoding {
  size_t inner;
  std::vector<double> mean, gain;
};

std::map<std::string, Decoding> read_decodings(const std::string& path) {
  std::map<std::string, Decoding> made;
  for (const Line& line : read_lines(read_file(path), path)) {
    const std::string here = path + ":" + std::to_string(line.number) + ": ";
    if (line.fields.size() != 4) throw Stop(kDamaged, here + "expected TENSOR, INNER, MEANs and GAINs, parted by tabs");
    Decoding decoding{static_cast<size_t>(read_integer(line.fields[1], 1, 1L << 30, here)), {}, {}};
    for (const std::string& word : split(line.fields[2], ',')) decoding.mean.push_back(read_number(word, here));
    for (const std::string& word : split(line.fields[3], ',')) decoding.gain.push_back(read_number(word, here));
    if (decoding.mean.size() != decoding.gain.size()) throw Stop(kDamaged, here + "as many MEANs as GAINs are needed");
    if (!made.emplace(line.fields[0], decoding).second) throw Stop(kDamaged, here + "`" + line.fields[0] + "` stands there twice");
  }
  return made;
}

double integer_at(const NpyFile& file, size_t i) {
  if (file.dtype == "|u1") return static_cast<unsigned char>(file.bytes[i]);
  int16_t value;
  memcpy(&value, &file.bytes[2 * i], 2);
  return value;
}

std::vector<float> decode(const NpyFile& file, const Decoding& decoding, size_t count, const std::string& path) {
  const size_t have = static_cast<size_t>(count_of(file.shape));
  if (have > count) throw Stop(kDamaged, path + ": " + std::to_string(have) + " elements, at most " + std::to_string(count) + " are expected");
  std::vector<float> values(count);
  for (size_t i = 0; i < have; i++) {
    const size_t c = (i / decoding.inner) % decoding.gain.size();
    values[i] = static_cast<float>((integer_at(file, i) - decoding.mean[c]) * decoding.gain[c]);
  }
  return values;
}

}  // namespace

std::vector<std::string> list_clips(const std::string& folder) {
  const Listing listing = list_folder(folder);
  if (!listing.files.empty()) throw Stop(kDamaged, folder + "/" + listing.files[0] + ": expected folders of clips only");
  if (listing.folders.empty()) throw Stop(kDamaged, folder + ": no clip is there");
  if (listing.folders[0][0] == '.') throw Stop(kDamaged, folder + "/" + listing.folders[0] + ": a clip's name starts with no dot");
  return listing.folders;
}

Tensors read_clip(const std::string& folder, const std::vector<Port>& ports) {
  const Listing listing = list_folder(folder);
  if (!listing.folders.empty()) throw Stop(kDamaged, folder + "/" + listing.folders[0] + ": expected files only");
  std::map<std::string, Decoding> decodings;
  size_t expected = ports.size();
  for (const std::string& name : listing.files) {
    if (name != "decode.txt") continue;
    decodings = read_decodings(folder + "/" + name);
    expected++;
  }
  Tensors made;
  for (const Port& port : ports) {
    const std::string path = folder + "/" + port.name + ".npy";
    const NpyFile file = read_npy(path);
    const auto decoding = decodings.find(port.name);
    if (file.dtype == "<f4") {
      if (decoding != decodings.end()) throw Stop(kDamaged, path + ": float32, and decode.txt has a line for it");
      if (file.shape != port.shape) throw Stop(kDamaged, path + ": shape " + to_text(file.shape) + ", expected " + to_text(port.shape));
      made[port.name] = read_floats(path);
      continue;
    }
    if (decoding == decodings.end()) throw Stop(kDamaged, path + ": dtype " + file.dtype + ", and decode.txt has no line for it");
    made[port.name] = {port.shape, decode(file, decoding->second, static_cast<size_t>(count_of(port.shape)), path)};
    decodings.erase(decoding);
  }
  if (!decodings.empty()) throw Stop(kDamaged, folder + "/decode.txt: `" + decodings.begin()->first + "` is no input stored as integers");
  if (listing.files.size() != expected) throw Stop(kDamaged, folder + ": more files than the " + std::to_string(ports.size()) + " inputs");
  return made;
}

}  // namespace ek
