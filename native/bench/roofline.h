// What this CPU can do at most: multiply-accumulates per second on registers, bytes per second from a working set.
#ifndef EK_BENCH_ROOFLINE_H
#define EK_BENCH_ROOFLINE_H

#include <cstddef>

// Multiply-accumulates per second of one thread; 0 where this CPU lacks the instruction. Each call takes about a millisecond.
double ek_peak_f32_avx2();
double ek_peak_f32_avx512();
double ek_peak_bf16_avx512();  // dpbf16
double ek_peak_i8_avx2();      // madd on 16-bit numbers and add
double ek_peak_i8_avx2_vnni();  // dpbusd on 256 bits
double ek_peak_i8_avx512();    // VNNI dpbusd

// Bytes per second that one thread reads, front to back, from `bytes` at `data` (64-byte aligned, a multiple of 256).
double ek_read_rate(const char* data, size_t bytes);

#endif
