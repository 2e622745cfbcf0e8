// The engine through its C API: streams, states, threads, bad input, and that nothing is allocated once a stream exists.
// Runs with every instruction set and format that is here; meant to be run under the sanitizers as well.
//
//     test_engine [--quick]
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "core/kernels.h"
#include "edgekit/edgekit.h"
#include "tests/tiny_model.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

using namespace ek_test;

// ---- counting allocations: glibc lets a program replace them; the sanitizers have their own ----

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCounts = false;
std::atomic<long> g_allocations{0};
#else
constexpr bool kCounts = true;
std::atomic<long> g_allocations{0};
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { return g_allocations++, __libc_malloc(n); }
void* calloc(size_t n, size_t each) { return g_allocations++, __libc_calloc(n, each); }
void* realloc(void* p, size_t n) { return g_allocations++, __libc_realloc(p, n); }
void* memalign(size_t align, size_t n) { return g_allocations++, __libc_memalign(align, n); }
void* aligned_alloc(size_t align, size_t n) { return g_allocations++, __libc_memalign(align, n); }
int posix_memalign(void** p, size_t align, size_t n) { return g_allocations++, *p = __libc_memalign(align, n), *p ? 0 : 12; }
}
#endif

namespace {

std::string g_where;

void check(bool is_so, const char* what) {
  if (is_so) return;
  fprintf(stderr, "%s: %s (%s)\n", g_where.c_str(), what, ek_last_message());
  exit(1);
}

std::vector<float> noise(size_t n, uint64_t seed = 3) {
  Random random(seed);
  std::vector<float> samples(n);
  for (float& x : samples) x = 0.5f * random.uniform();
  return samples;
}

// A model and its stream, closed at the end.
struct Engine {
  ek_model* model = nullptr;
  ek_stream* stream = nullptr;
  ek_info info;
  Engine(const Bytes& bytes, const ek_options& options) {
    check(ek_model_open_memory(bytes.data(), bytes.size(), &options, &model) == EK_OK, "the model does not open");
    check(ek_stream_create(model, &stream) == EK_OK, "no stream");
    info.size = sizeof info;
    check(ek_model_info(model, &info) == EK_OK, "no info");
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() {
    ek_stream_close(stream);
    ek_model_close(model);
  }
  Bytes saved() const {
    Bytes blob(ek_stream_state_bytes(stream));
    check(ek_stream_save(stream, blob.data(), blob.size()) == EK_OK, "save failed");
    return blob;
  }
  // process in chunks of `chunk` (0: of random sizes, also none), then flush.
  std::vector<float> streamed(const std::vector<float>& in, size_t chunk) const {
    Random random(chunk);
    std::vector<float> out(in.size() + ek_stream_latency(stream));
    for (size_t at = 0; at < in.size();) {
      size_t n = chunk ? chunk : random.below(3 * info.hop_length);
      if (n > in.size() - at) n = in.size() - at;
      check(ek_stream_process(stream, in.data() + at, out.data() + at, n) == EK_OK, "process failed");
      at += n;
    }
    check(ek_stream_flush(stream, out.data() + in.size(), out.size() - in.size()) == EK_OK, "flush failed");
    return out;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), 4 * a.size()) == 0); }

void chunks_do_not_matter(const Engine& engine) {
  const size_t latency = ek_stream_latency(engine.stream);
  for (size_t n : {size_t{0}, size_t{1}, size_t{engine.info.hop_length}, size_t{engine.info.hop_length} * 9 + 1, size_t{engine.info.hop_length} * 40}) {
    const std::vector<float> in = noise(n);
    std::vector<float> whole(n);
    check(ek_denoise(engine.stream, in.data(), whole.data(), n) == EK_OK, "denoise failed");
    for (float y : whole) check(std::isfinite(y) && std::fabs(y) <= 1.0f, "a sample is beyond +-1");
    for (size_t chunk : {size_t{1}, size_t{engine.info.hop_length}, size_t{37}, n + 1, size_t{0}}) {
      std::vector<float> out = engine.streamed(in, chunk);
      for (size_t i = 0; i < latency; i++) check(out[i] == 0.0f, "what comes before the clip is not zero");
      out.erase(out.begin(), out.begin() + static_cast<ptrdiff_t>(latency));
      check(same(out, whole), "a stream in chunks differs from the whole clip");
    }
    std::vector<float> in_place(in);
    check(ek_denoise(engine.stream, in_place.data(), in_place.data(), n) == EK_OK && same(in_place, whole), "denoise in place differs");
  }
}

void states_come_back(const Engine& engine, const Bytes& bytes, const ek_options& options) {
  const size_t hop = engine.info.hop_length;
  const std::vector<float> before = noise(7 * hop + 3), after = noise(9 * hop, 5);
  std::vector<float> a(before.size()), b(after.size()), c(after.size());
  check(ek_stream_process(engine.stream, before.data(), a.data(), before.size()) == EK_OK, "process failed");
  const Bytes state = engine.saved();
  check(ek_stream_process(engine.stream, after.data(), b.data(), after.size()) == EK_OK, "process failed");
  check(ek_stream_restore(engine.stream, state.data(), state.size()) == EK_OK, "a state does not come back");
  check(ek_stream_process(engine.stream, after.data(), c.data(), after.size()) == EK_OK && same(b, c), "a restored stream goes on differently");

  ek_options threaded = options;
  threaded.threads = 3;
  const Engine other(bytes, threaded);
  check(ek_stream_restore(other.stream, state.data(), state.size()) == EK_OK, "a state does not fit a stream with threads");
  check(ek_stream_process(other.stream, after.data(), c.data(), after.size()) == EK_OK && same(b, c), "threads change the numbers");

  Bytes damaged(state);
  damaged[damaged.size() / 2] ^= 1;
  const Bytes untouched = engine.saved();
  check(ek_stream_restore(engine.stream, damaged.data(), damaged.size()) == EK_BAD_STATE, "a damaged state is taken");
  check(ek_stream_restore(engine.stream, state.data(), state.size() - 1) == EK_BAD_STATE, "a short state is taken");
  check(engine.saved() == untouched, "a refused state changed the stream");
  ek_stream_reset(engine.stream);
}

void bad_audio_changes_nothing(const Engine& engine) {
  const size_t hop = engine.info.hop_length;
  std::vector<float> in = noise(5 * hop), out(in.size());
  check(ek_stream_process(engine.stream, in.data(), out.data(), in.size()) == EK_OK, "process failed");
  const Bytes before = engine.saved();
  const std::vector<float> silence(out);
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 1e30f};
  for (float x : bad) {
    in[4 * hop + 1] = x;
    check(ek_stream_process(engine.stream, in.data(), out.data(), in.size()) == EK_BAD_AUDIO, "bad audio is taken");
    check(*ek_last_message() != 0, "bad audio has no sentence");
    check(ek_denoise(engine.stream, in.data(), out.data(), in.size()) == EK_BAD_AUDIO, "bad audio is taken");
  }
  std::vector<float> spectrum(2 * engine.info.bins, 0.5f), mask(2 * engine.info.bins);
  spectrum[3] = bad[0];
  check(ek_step(engine.stream, spectrum.data(), mask.data()) == EK_BAD_AUDIO, "a bad spectrum is taken");
  check(engine.saved() == before && same(out, silence), "bad audio changed the stream");
  check(ek_stream_process(engine.stream, nullptr, nullptr, 0) == EK_OK && engine.saved() == before, "no samples changed the stream");

  // The loudest that is taken, and the quietest: still numbers.
  for (float size : {65536.0f, 1e-42f}) {
    for (size_t i = 0; i < in.size(); i++) in[i] = i & 1 ? size : -size;
    check(ek_stream_process(engine.stream, in.data(), out.data(), in.size()) == EK_OK, "process failed");
    for (float y : out) check(std::isfinite(y), "a sample is not finite");
  }
  ek_stream_reset(engine.stream);
}

void float_mode_is_the_callers(const Engine& engine) {
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr(), odd = 0x1f80 | 0x4000;  // towards infinity, denormals are numbers
  const std::vector<float> in = noise(4 * engine.info.hop_length);
  std::vector<float> plain(in.size()), out(in.size());
  check(ek_denoise(engine.stream, in.data(), plain.data(), in.size()) == EK_OK, "denoise failed");
  _mm_setcsr(odd);
  const ek_status status = ek_denoise(engine.stream, in.data(), out.data(), in.size());
  const unsigned now = _mm_getcsr();
  _mm_setcsr(before);
  check(status == EK_OK && (now & ~0x3fu) == odd, "the caller's floating-point mode is lost");
  check(same(plain, out), "the caller's rounding changes the numbers");
#else
  (void)engine;
#endif
}

void nothing_is_allocated(const Engine& engine) {
  const std::vector<float> in = noise(20 * engine.info.hop_length + 3);
  std::vector<float> out(in.size()), rest(ek_stream_latency(engine.stream)), spectrum(2 * engine.info.bins, 0.1f), mask(spectrum.size());
  Bytes blob(ek_stream_state_bytes(engine.stream));
  const long before = g_allocations;
  bool is_ok = ek_stream_process(engine.stream, in.data(), out.data(), in.size()) == EK_OK;
  is_ok &= ek_stream_save(engine.stream, blob.data(), blob.size()) == EK_OK && ek_stream_restore(engine.stream, blob.data(), blob.size()) == EK_OK;
  is_ok &= ek_stream_flush(engine.stream, rest.data(), rest.size()) == EK_OK && ek_denoise(engine.stream, in.data(), out.data(), in.size()) == EK_OK;
  is_ok &= ek_step(engine.stream, spectrum.data(), mask.data()) == EK_OK && ek_stream_reset(engine.stream) == EK_OK;
  const long after = g_allocations;
  check(is_ok, "a call failed");
  check(before == after, "a frame allocates");
  check(!kCounts || before > 0, "allocations are not counted");
}

// Streams of one model on several threads, each with threads of its own.
void streams_are_independent(const Bytes& bytes, const ek_options& options) {
  ek_options threaded = options;
  threaded.threads = 2;
  Engine engine(bytes, threaded);
  const std::vector<float> in = noise(30 * engine.info.hop_length);
  std::vector<float> want(in.size());
  check(ek_denoise(engine.stream, in.data(), want.data(), in.size()) == EK_OK, "denoise failed");
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 2; t++) {
    threads.emplace_back([&] {
      ek_stream* stream = nullptr;
      std::vector<float> out(in.size());
      if (ek_stream_create(engine.model, &stream) == EK_OK && ek_denoise(stream, in.data(), out.data(), in.size()) == EK_OK && same(out, want)) right++;
      ek_stream_close(stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
  check(right == 2, "streams of one model disturb each other");
}

// Sums of int8 are exact: shared between frames or not, the numbers are the same, whether what changes between frames fits int8 or not.
void turns_change_no_integer(const Engine& engine, const Bytes& bytes, const ek_options& options) {
  ek_options plain = options;
  plain.algorithm = EK_ALGORITHM_FOUR_MULT;
  const Engine other(bytes, plain);
  std::vector<float> in = noise(60 * engine.info.hop_length), a(in.size()), b(in.size());
  for (size_t i = 0; i < in.size(); i++) in[i] *= std::exp2(static_cast<float>(i / (3 * engine.info.hop_length) % 7) - 4.0f);
  check(ek_denoise(engine.stream, in.data(), a.data(), in.size()) == EK_OK && ek_denoise(other.stream, in.data(), b.data(), in.size()) == EK_OK, "denoise failed");
  check(same(a, b), "int8 in turns is not int8");
}

void sums_that_do_not_fit_are_refused() {
  g_where = "int8 weights whose sums do not fit";
  TinyModel model;
  model.format = ek::STORED_I8;
  model.sums_fit = false;
  const Bytes bytes = make_model(model);
  ek_options options = EK_OPTIONS_INIT;
  check(Engine(bytes, options).info.algorithm == EK_ALGORITHM_FOUR_MULT, "they are taken in turns");
  options.algorithm = EK_ALGORITHM_FAST;
  options.isa = "scalar";
  ek_model* opened = nullptr;
  check(ek_model_open_memory(bytes.data(), bytes.size(), &options, &opened) == EK_UNSUPPORTED && strstr(ek_last_message(), "do not add up"), "they are not refused");
}

void bad_options_have_sentences(const Bytes& bytes) {
  g_where = "options";
  ek_model* model = nullptr;
  ek_options options = EK_OPTIONS_INIT;
  const auto refused = [&](ek_status status) { return ek_model_open_memory(bytes.data(), bytes.size(), &options, &model) == status && !model && *ek_last_message(); };
  options.isa = "sse9";
  check(refused(EK_UNSUPPORTED), "an unknown instruction set");
  options.isa = nullptr;
  options.threads = 0;
  check(refused(EK_BAD_ARGUMENT), "no threads");
  options.threads = EK_MAX_THREADS + 1;
  check(refused(EK_BAD_ARGUMENT), "too many threads");
  options.threads = 1;
  options.precision = EK_PRECISION_INT8;
  check(refused(EK_UNSUPPORTED), "int8 of floats");
  options.precision = EK_PRECISION_FP32;
  options.algorithm = EK_ALGORITHM_FAST + 1;
  check(refused(EK_BAD_ARGUMENT), "an algorithm that is none");
  options.precision = EK_PRECISION_BF16;
  options.algorithm = EK_ALGORITHM_GAUSS;
  check(refused(EK_UNSUPPORTED), "Gauss in bf16");
  options.precision = 9;
  check(refused(EK_BAD_ARGUMENT), "a precision that is none");
  options = EK_OPTIONS_INIT;
  options.size = 3;
  check(refused(EK_BAD_ARGUMENT), "options of no size");

  struct {
    ek_options known;
    int64_t future;
  } newer = {EK_OPTIONS_INIT, 0};
  newer.known.size = sizeof newer;
  check(ek_model_open_memory(bytes.data(), bytes.size(), &newer.known, &model) == EK_OK, "a newer caller that asks for nothing new");
  ek_model_close(model);
  newer.future = 1;
  check(ek_model_open_memory(bytes.data(), bytes.size(), &newer.known, &model) == EK_UNSUPPORTED, "a newer caller that asks for something new");

  check(ek_model_open("/nonexistent/model.ekd", nullptr, &model) == EK_BAD_FILE && strstr(ek_last_message(), "/nonexistent"), "a file that is not there");
  check(ek_model_open("/", nullptr, &model) == EK_BAD_FILE, "a folder");
  Bytes damaged(bytes);
  damaged[damaged.size() - 70] ^= 4;
  check(ek_model_open_memory(damaged.data(), damaged.size(), nullptr, &model) == EK_BAD_MODEL && strstr(ek_last_message(), "checksum"), "a damaged file");
  damaged = bytes;
  damaged[8] = 2;
  check(ek_model_open_memory(damaged.data(), damaged.size(), nullptr, &model) == EK_BAD_MODEL && strstr(ek_last_message(), "version"), "another version");
  check(ek_model_open_memory(bytes.data(), bytes.size() - 64, nullptr, &model) == EK_BAD_MODEL && strstr(ek_last_message(), "truncated"), "a truncated file");
  check(ek_model_open_memory(bytes.data(), 5, nullptr, &model) == EK_BAD_MODEL, "five bytes");
  check(ek_model_open(nullptr, nullptr, &model) == EK_BAD_ARGUMENT && ek_stream_create(nullptr, nullptr) == EK_BAD_ARGUMENT, "null pointers");
  ek_stream_close(nullptr);
  ek_model_close(nullptr);
  const char* unknown = ek_status_text(static_cast<ek_status>(EK_BAD_STATE + 1));
  for (int code = EK_OK; code <= EK_BAD_STATE; code++) check(strcmp(ek_status_text(static_cast<ek_status>(code)), unknown) != 0, "a status without a sentence");
  check(strstr(ek_status_text(EK_CUDA_FAILED), "CUDA") && !strstr(unknown, "CUDA"), "CUDA's status has a sentence of its own");
}

void another_models_state_is_refused(const Bytes& a, const Bytes& b) {
  g_where = "states";
  const ek_options options = EK_OPTIONS_INIT;  // another model says so first, whatever its kernels
  ek_options scalar = EK_OPTIONS_INIT, gauss = EK_OPTIONS_INIT, four = EK_OPTIONS_INIT;
  four.algorithm = EK_ALGORITHM_FOUR_MULT;
  scalar.isa = "scalar";
  gauss.algorithm = EK_ALGORITHM_GAUSS;
  const Engine first(a, four), other(b, options), slow(a, scalar), three(a, gauss);
  const Bytes state = first.saved();
  check(ek_stream_restore(other.stream, state.data(), state.size()) == EK_BAD_STATE, "another model's state is taken");
  if (strcmp(first.info.row, slow.info.row) != 0) check(ek_stream_restore(slow.stream, state.data(), state.size()) == EK_BAD_STATE, "another row's state is taken");
  if (first.info.algorithm != three.info.algorithm) check(ek_stream_restore(three.stream, state.data(), state.size()) == EK_BAD_STATE, "another algorithm's state is taken");
}

}  // namespace

int main(int argc, char** argv) {
  const bool is_quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
  TinyModel shapes[4];
  shapes[0].n_fft = 32;
  shapes[0].encoder = {2, 17, 3};
  shapes[0].decoder = {5, 16, 2};
  shapes[1].is_gru = 1;
  shapes[2].look_ahead = 0;
  shapes[2].mask = 1;
  shapes[3].encoder = {16, 16};
  shapes[3].decoder = {16, 16};
  shapes[3].hidden = {16};
  shapes[3].mask = 2;
  shapes[3].n_fft = 64;
  shapes[3].win = 48;
  shapes[3].hop = 12;

  struct {
    uint32_t stored;
    int32_t precision, algorithm;
  } ways[] = {{ek::STORED_F32, EK_PRECISION_FP32, EK_ALGORITHM_FOUR_MULT},
              {ek::STORED_F16, EK_PRECISION_FP32, EK_ALGORITHM_GAUSS},
              {ek::STORED_F32, EK_PRECISION_FP32, EK_ALGORITHM_FAST},
              {ek::STORED_F32, EK_PRECISION_BF16, EK_ALGORITHM_FOUR_MULT},
              {ek::STORED_F32, EK_PRECISION_BF16, EK_ALGORITHM_FAST},
              {ek::STORED_I8, EK_PRECISION_INT8, EK_ALGORITHM_FOUR_MULT},
              {ek::STORED_I8, EK_PRECISION_INT8, EK_ALGORITHM_FAST}};
  int runs = 0;
  for (const char* isa : {"scalar", "avx2", "avx512", "neon", "neon_dotprod"}) {
    if (!ek::row_for(isa, ek::EK_F32)) continue;
    for (const auto& way : ways) {
      const ek::Format format = way.stored == ek::STORED_I8 ? ek::EK_I8 : way.precision == EK_PRECISION_BF16 ? ek::EK_BF16 : ek::EK_F32;
      if (way.algorithm == EK_ALGORITHM_FAST && !ek::row_for(isa, format)->change_row) continue;
      for (TinyModel& shape : shapes) {
        if (is_quick && &shape != shapes) continue;
        shape.format = way.stored;
        const Bytes bytes = make_model(shape);
        ek_options options = EK_OPTIONS_INIT;
        options.isa = isa;
        options.precision = way.precision;
        options.algorithm = way.algorithm;
        const Engine engine(bytes, options);
        g_where = std::string(engine.info.row) + ", algorithm " + std::to_string(way.algorithm) + ", shape " + std::to_string(&shape - shapes);
        chunks_do_not_matter(engine);
        states_come_back(engine, bytes, options);
        bad_audio_changes_nothing(engine);
        float_mode_is_the_callers(engine);
        nothing_is_allocated(engine);
        streams_are_independent(bytes, options);
        if (way.precision == EK_PRECISION_INT8 && way.algorithm == EK_ALGORITHM_FAST) turns_change_no_integer(engine, bytes, options);
        runs++;
      }
    }
  }
  TinyModel other;
  other.seed = 2;
  sums_that_do_not_fit_are_refused();
  bad_options_have_sentences(make_model(TinyModel{}));
  another_models_state_is_refused(make_model(TinyModel{}), make_model(other));
  printf("%d combinations of kernels, format and shape: all is well%s\n", runs, kCounts ? "" : " (allocations not counted)");
  return 0;
}
