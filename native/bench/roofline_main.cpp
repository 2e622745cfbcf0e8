// Prints the roofline of this machine as JSON:
//
//     {"1": {"f32_avx512": {"median": .., "max": ..}, ..., "read": [{"bytes": .., "median": .., "max": ..}, ...]}, "2": ...}
//
// per thread, in multiply-accumulates and bytes per second; the keys are numbers of threads running at once. `roofline [threads ...]`, else 1 and 2.
// With several threads a figure is the median over all of them.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "roofline.h"

namespace {

struct Probe {
  const char* name;
  double (*rate)();
};
constexpr Probe kProbes[] = {{"f32_avx2", ek_peak_f32_avx2},         {"f32_avx512", ek_peak_f32_avx512},
                             {"bf16_avx512", ek_peak_bf16_avx512},   {"i8_avx2", ek_peak_i8_avx2},
                             {"i8_avx2_vnni", ek_peak_i8_avx2_vnni}, {"i8_avx512", ek_peak_i8_avx512}};
constexpr size_t kKiB[] = {24, 256, 600, 2048, 4096, 8192, 15360, 24576, 131072};
constexpr int kRounds = 21;

struct Figures {
  std::vector<double> peak[std::size(kProbes)], read[std::size(kKiB)];
};

void print_spread(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  std::printf("\"median\": %.4g, \"max\": %.4g", values[values.size() / 2], values.back());
}

void probe(int threads) {
  Figures all;
  std::mutex mutex;
  std::atomic<int> ready{0};
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; t++)
    pool.emplace_back([&] {
      const size_t bytes = kKiB[std::size(kKiB) - 1] << 10;
      char* data = static_cast<char*>(std::aligned_alloc(4096, bytes));
      std::memset(data, 1, bytes);
      Figures mine;
      for (ready++; ready < threads;) std::this_thread::yield();
      for (int round = 0; round < kRounds; round++) {
        for (size_t i = 0; i < std::size(kProbes); i++) mine.peak[i].push_back(kProbes[i].rate());
        for (size_t i = 0; i < std::size(kKiB); i++) mine.read[i].push_back(ek_read_rate(data, kKiB[i] << 10));
      }
      std::free(data);
      const std::lock_guard<std::mutex> lock(mutex);
      for (size_t i = 0; i < std::size(kProbes); i++) all.peak[i].insert(all.peak[i].end(), mine.peak[i].begin(), mine.peak[i].end());
      for (size_t i = 0; i < std::size(kKiB); i++) all.read[i].insert(all.read[i].end(), mine.read[i].begin(), mine.read[i].end());
    });
  for (std::thread& t : pool) t.join();
  std::printf("\"%d\": {", threads);
  for (size_t i = 0; i < std::size(kProbes); i++) {
    std::printf("\"%s\": {", kProbes[i].name);
    print_spread(all.peak[i]);
    std::printf("}, ");
  }
  std::printf("\"read\": [");
  for (size_t i = 0; i < std::size(kKiB); i++) {
    std::printf("%s{\"bytes\": %zu, ", i ? ", " : "", kKiB[i] << 10);
    print_spread(all.read[i]);
    std::printf("}");
  }
  std::printf("]}");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> threads;
  for (int i = 1; i < argc; i++) threads.push_back(std::max(1, std::atoi(argv[i])));
  if (threads.empty()) threads = {1, 2};
  std::printf("{");
  for (size_t i = 0; i < threads.size(); i++) {
    if (i) std::printf(", ");
    probe(threads[i]);
  }
  std::printf("}\n");
}
