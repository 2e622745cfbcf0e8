// Which row of kernels runs: the best that this CPU and this build have, or the one that was asked for.
#include <cstdlib>
#include <cstring>

#include "core/kernels.h"
#include "core/status.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace ek {

// Weak: a build may leave out files of rows; their addresses are null then.
extern const Row scalar_f32 __attribute__((weak));
extern const Row scalar_bf16 __attribute__((weak));
extern const Row scalar_i8 __attribute__((weak));
#if defined(__x86_64__)
extern const Row avx2_f32 __attribute__((weak));
extern const Row avx2_i8 __attribute__((weak));
extern const Row avx2_vnni_i8 __attribute__((weak));
extern const Row avx512_f32 __attribute__((weak));
extern const Row avx512_bf16 __attribute__((weak));
extern const Row avx512_i8 __attribute__((weak));
#elif defined(__aarch64__)
extern const Row neon_f32 __attribute__((weak));
extern const Row neon_i8 __attribute__((weak));
extern const Row neon_dotprod_i8 __attribute__((weak));
#endif

namespace {

// By format: f32, bf16, int8. A row that the CPU lacks is null; row_for then looks one line up.
struct Isa {
  const char* name;
  const Row* rows[3];
};

constexpr int kIsas = 3;

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
const Row* avx2_int8() { return __builtin_cpu_supports("avxvnni") && &avx2_vnni_i8 ? &avx2_vnni_i8 : &avx2_i8; }
#elif defined(__aarch64__)
constexpr unsigned long kHwcapDotprod = 1ul << 20;  // HWCAP_ASIMDDP; older headers lack the name
bool has_dotprod() { return (getauxval(AT_HWCAP) & kHwcapDotprod) != 0; }
#endif

// From the plainest to the best. bf16 where no row has it: the f32 row above it in the table, on weights rounded to bf16.
void table(Isa (&isas)[kIsas]) {
  isas[0] = {"scalar", {&scalar_f32, &scalar_bf16, &scalar_i8}};
#if defined(__x86_64__)
  isas[1] = {"avx2", {}};
  isas[2] = {"avx512", {}};
  if (has_avx2()) isas[1] = {"avx2", {&avx2_f32, &avx2_f32, avx2_int8()}};
  if (has_avx512()) {
    isas[2] = {"avx512",
               {&avx512_f32, __builtin_cpu_supports("avx512bf16") ? &avx512_bf16 : &avx512_f32,
                __builtin_cpu_supports("avx512vnni") ? &avx512_i8 : nullptr}};
  }
#elif defined(__aarch64__)
  isas[1] = {"neon", {&neon_f32, &neon_f32, &neon_i8}};
  isas[2] = {"neon_dotprod", {}};
  if (has_dotprod()) isas[2] = {"neon_dotprod", {nullptr, nullptr, &neon_dotprod_i8}};
#else
  isas[1] = isas[2] = {"", {}};
#endif
}

const char* const kKnown[] = {"scalar", "avx2", "avx512", "neon", "neon_dotprod"};

}  // namespace

// Null, with a sentence, where `isa` is unknown here or has no kernels of its own at all.
const Row* row_for(const char* isa, Format format) {
  Isa isas[kIsas];
  table(isas);
  for (int i = 0; i < kIsas; i++) {
    if (strcmp(isas[i].name, isa) != 0) continue;
    const bool own = isas[i].rows[EK_F32] || isas[i].rows[EK_BF16] || isas[i].rows[EK_I8];
    if (!own) {
      fail(EK_UNSUPPORTED, "the instruction set `%s` is not supported by this CPU, or this build has no kernels for it", isa);
      return nullptr;
    }
    for (int below = i; below >= 0; below--) {
      if (isas[below].rows[format]) return isas[below].rows[format];
    }
    fail(EK_UNSUPPORTED, "this build has no kernels of this precision for `%s` or anything below it", isa);
    return nullptr;
  }
  for (const char* known : kKnown) {
    if (strcmp(known, isa) == 0) {
      fail(EK_UNSUPPORTED, "the instruction set `%s` is another processor's", isa);
      return nullptr;
    }
  }
  fail(EK_UNSUPPORTED, "unknown instruction set `%.32s`; known are scalar, avx2, avx512, neon and neon_dotprod", isa);
  return nullptr;
}

const char* best_isa() {
  const char* asked = getenv("EDGEKIT_ISA");
  if (asked && *asked) {
    for (const char* known : kKnown) {
      if (strcmp(known, asked) == 0) return row_for(known, EK_F32) ? known : nullptr;
    }
    row_for(asked, EK_F32);  // for its sentence
    return nullptr;
  }
  Isa isas[kIsas];
  table(isas);
  for (int i = kIsas - 1; i >= 0; i--) {
    if (isas[i].rows[EK_F32] || isas[i].rows[EK_I8]) return isas[i].name;
  }
  fail(EK_UNSUPPORTED, "this build has no kernels at all");
  return nullptr;
}

}  // namespace ek

const char* ek_best_isa(void) { return ek::best_isa(); }
