#include "compare.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <set>

#include "files.h"
#include "npy.h"
#include "stop.h"

namespace ek {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What one tensor is off by, over the clips so far.
struct Difference {
  double max_abs = 0;  // NaN once a NaN was seen
  double signal = 0, noise = 0;
  int64_t count = 0;
  std::string clip;  // where max_abs is
  Shape index;
  double want = 0, got = 0;

  // As edgekit/compare.py: inf when equal, -inf when the reference is silent and the output is not.
  double sqnr_db() const {
    if (std::isnan(signal) || std::isnan(noise)) return std::nan("");
    if (noise == 0) return kInfinity;
    return signal > 0 && std::isfinite(noise) ? 10 * std::log10(signal / noise) : -kInfinity;
  }
};

Shape index_of(int64_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (size_t i = shape.size(); i-- > 0; flat /= shape[i]) index[i] = flat % shape[i];
  return index;
}

void add(const Tensor& want, const Tensor& got, const std::string& clip, Difference* total) {
  for (size_t i = 0; i < want.values.size(); i++) {
    const double a = want.values[i], b = got.values[i];
    const double off = a == b ? 0 : std::fabs(a - b);  // equal infinities agree; inf - inf would say NaN
    total->signal += a * a;
    total->noise += off * off;
    // The first NaN stays the worst; `!(off <= max)` lets it in, and nothing after it.
    if (!std::isnan(total->max_abs) && (total->count == 0 || !(off <= total->max_abs))) {
      total->max_abs = off;
      total->clip = clip;
      total->index = index_of(static_cast<int64_t>(i), want.shape);
      total->want = a;
      total->got = b;
    }
    total->count++;
  }
}

std::string number(double value) {
  char text[40];
  snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// Names that are in one list only.
std::vector<std::string> only_in(const std::vector<std::string>& these, const std::vector<std::string>& others) {
  const std::set<std::string> known(others.begin(), others.end());
  std::vector<std::string> only;
  for (const std::string& name : these) {
    if (!known.count(name)) only.push_back(name);
  }
  return only;
}

std::vector<std::string> clips_of(const std::string& folder) {
  const Listing listing = list_folder(folder);
  if (!listing.files.empty()) throw Stop(kDamaged, folder + "/" + listing.files[0] + ": expected folders of clips only");
  return listing.folders;
}

std::vector<std::string> files_of(const std::string& folder) {
  const Listing listing = list_folder(folder);
  if (!listing.folders.empty()) throw Stop(kDamaged, folder + "/" + listing.folders[0] + ": expected files only");
  return listing.files;
}

}  // namespace

Comparison compare_folders(const std::string& reference, const std::string& outputs, const std::vector<Tolerance>& tolerances) {
  Comparison made;
  std::vector<std::string> wanted;
  for (const Tolerance& tolerance : tolerances) wanted.push_back(tolerance.tensor + ".npy");
  const std::vector<std::string> clips = clips_of(reference), run = clips_of(outputs);
  if (clips.empty()) throw Stop(kDamaged, reference + ": no clip is there to compare");
  for (const std::string& clip : only_in(clips, run)) made.failed.push_back("clip `" + clip + "` is missing in the outputs");
  for (const std::string& clip : only_in(run, clips)) made.failed.push_back("clip `" + clip + "` is in the outputs and not in the reference");

  std::vector<Difference> totals(tolerances.size());
  const std::set<std::string> is_run(run.begin(), run.end());
  for (const std::string& clip : clips) {
    const std::string here = reference + "/" + clip, there = outputs + "/" + clip;
    const std::vector<std::string> have = files_of(here);
    for (const std::string& name : only_in(wanted, have)) throw Stop(kDamaged, here + "/" + name + ": missing in the reference");
    for (const std::string& name : only_in(have, wanted)) throw Stop(kDamaged, here + "/" + name + ": in the reference, and without a tolerance");
    if (!is_run.count(clip)) continue;
    const std::vector<std::string> got_files = files_of(there);
    const std::set<std::string> is_there(got_files.begin(), got_files.end());
    for (const std::string& name : only_in(wanted, got_files)) made.failed.push_back(clip + "/" + name + " is missing in the outputs");
    for (const std::string& name : only_in(got_files, wanted)) made.failed.push_back(clip + "/" + name + " is in the outputs and not in the reference");
    for (size_t t = 0; t < tolerances.size(); t++) {
      if (!is_there.count(wanted[t])) continue;
      const Tensor want = read_floats(here + "/" + wanted[t]), got = read_floats(there + "/" + wanted[t]);
      if (want.shape != got.shape) {
        made.failed.push_back(clip + "/" + wanted[t] + " has shape " + to_text(got.shape) + ", expected " + to_text(want.shape));
        continue;
      }
      add(want, got, clip, &totals[t]);
    }
  }

  Json rows = Json::object();
  for (size_t t = 0; t < tolerances.size(); t++) {
    const Difference& total = totals[t];
    const Tolerance& limit = tolerances[t];
    const double sqnr = total.sqnr_db();
    const std::string where = total.count ? " at clip `" + total.clip + "`, index " + to_text(total.index) + ": " + number(total.got) + ", expected " + number(total.want) : "";
    // NaN <= limit is false, so NaN fails.
    const bool is_close = total.max_abs <= limit.max_abs, is_clean = sqnr >= limit.min_sqnr_db;
    if (total.count == 0) {
      made.failed.push_back("`" + limit.tensor + "` has nothing that could be compared");
    } else if (!is_close) {
      made.failed.push_back("`" + limit.tensor + "` is off by " + number(total.max_abs) + ", allowed " + number(limit.max_abs) + "; worst" + where);
    } else if (!is_clean) {
      made.failed.push_back("`" + limit.tensor + "` has " + number(sqnr) + " dB SQNR, at least " + number(limit.min_sqnr_db) + " is needed; worst" + where);
    }
    Json row = Json::object();
    row.set("max_abs", total.max_abs);
    row.set("sqnr_db", sqnr);
    row.set("n", total.count);
    row.set("allowed_max_abs", limit.max_abs);
    row.set("needed_sqnr_db", limit.min_sqnr_db);
    row.set("worst_clip", total.clip);
    row.set("worst_index", Json::list(total.index));
    row.set("worst_output", total.got);
    row.set("worst_reference", total.want);
    row.set("passed", total.count > 0 && is_close && is_clean);
    rows.set(limit.tensor, row);
  }
  made.report = Json::object();
  made.report.set("passed", made.failed.empty());
  made.report.set("clips", static_cast<int64_t>(clips.size()));
  made.report.set("outputs", rows);
  made.report.set("failed", Json::list(made.failed));
  return made;
}

}  // namespace ek
