// See roofline.h. Every probe is compiled for its own instruction set and runs only where CPUID has it.
#include "roofline.h"

#include <immintrin.h>

#include <chrono>

namespace {

constexpr int kChains = 16;     // independent sums, at least latency times rate
constexpr int kFewChains = 12;  // of 16 registers, AVX2
constexpr long kRounds = 100000;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The loops below are alike: kRounds rounds of one instruction on every chain. The empty asm keeps a chain in its register and the compiler
// from folding rounds. Written out, since a function's target does not carry over into a template.
double rate(double seconds, int chains, int macs) { return static_cast<double>(kRounds) * chains * macs / seconds; }

__attribute__((target("avx2,fma"))) double f32_avx2() {
  __m256 sum[kFewChains] = {};
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kFewChains; i++) {
      sum[i] = _mm256_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+x"(sum[i]));
    }
  return rate(now() - begin, kFewChains, 8);
}

__attribute__((target("avx2"))) double i8_avx2() {
  __m256i sum[kFewChains] = {};
  __m256i a = _mm256_set1_epi16(2), b = _mm256_set1_epi16(3);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kFewChains; i++) {
      asm volatile("" : "+x"(a));  // else one product serves all
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(a, b));
      asm volatile("" : "+x"(sum[i]));
    }
  return rate(now() - begin, kFewChains, 16);
}

__attribute__((target("avx2,avxvnni"))) double i8_avx2_vnni() {
  __m256i sum[kFewChains] = {};
  const __m256i a = _mm256_set1_epi8(1);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kFewChains; i++) {
      sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, a);
      asm volatile("" : "+x"(sum[i]));
    }
  return rate(now() - begin, kFewChains, 32);
}

__attribute__((target("avx512f"))) double f32_avx512() {
  __m512 sum[kChains] = {};
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) {
      sum[i] = _mm512_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+v"(sum[i]));
    }
  return rate(now() - begin, kChains, 16);
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_avx512() {
  __m512 sum[kChains] = {};
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_set1_epi32(0x30003000);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) {
      sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
      asm volatile("" : "+v"(sum[i]));
    }
  return rate(now() - begin, kChains, 32);
}

__attribute__((target("avx512f,avx512vnni"))) double i8_avx512() {
  __m512i sum[kChains] = {};
  const __m512i a = _mm512_set1_epi8(1);
  const double begin = now();
  for (long round = 0; round < kRounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) {
      sum[i] = _mm512_dpbusd_epi32(sum[i], a, a);
      asm volatile("" : "+v"(sum[i]));
    }
  return rate(now() - begin, kChains, 64);
}

__attribute__((target("avx512f"))) double read_avx512(const char* data, size_t bytes, long repeats) {
  __m512i seen[4] = {};
  const double begin = now();
  for (long r = 0; r < repeats; r++)
    for (size_t i = 0; i < bytes; i += 256)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        seen[j] = _mm512_xor_si512(seen[j], _mm512_load_si512(data + i + 64 * j));
        asm volatile("" : "+v"(seen[j]));
      }
  return static_cast<double>(bytes) * repeats / (now() - begin);
}

__attribute__((target("avx2"))) double read_avx2(const char* data, size_t bytes, long repeats) {
  __m256i seen[8] = {};
  const double begin = now();
  for (long r = 0; r < repeats; r++)
    for (size_t i = 0; i < bytes; i += 256)
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) {
        seen[j] = _mm256_xor_si256(seen[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
        asm volatile("" : "+x"(seen[j]));
      }
  return static_cast<double>(bytes) * repeats / (now() - begin);
}

}  // namespace

double ek_peak_f32_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? f32_avx2() : 0; }
double ek_peak_f32_avx512() { return __builtin_cpu_supports("avx512f") ? f32_avx512() : 0; }
double ek_peak_bf16_avx512() { return __builtin_cpu_supports("avx512bf16") ? bf16_avx512() : 0; }
double ek_peak_i8_avx2() { return __builtin_cpu_supports("avx2") ? i8_avx2() : 0; }
double ek_peak_i8_avx2_vnni() { return __builtin_cpu_supports("avxvnni") ? i8_avx2_vnni() : 0; }
double ek_peak_i8_avx512() { return __builtin_cpu_supports("avx512vnni") ? i8_avx512() : 0; }

double ek_read_rate(const char* data, size_t bytes) {
  const long repeats = static_cast<long>((size_t{16} << 20) / bytes) + 1;
  if (__builtin_cpu_supports("avx512f")) return read_avx512(data, bytes, repeats);
  return __builtin_cpu_supports("avx2") ? read_avx2(data, bytes, repeats) : 0;
}
