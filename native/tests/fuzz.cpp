// Damaged and hostile weight files, saved states and WAV headers. Cases are deterministic: the same seed makes the same ones.
//
//     test_fuzz [weights|states|wavs] [cases] [first seed]
//
// A weight file is made with a random small shape, damaged, and most often sealed again with a fitting length and checksum, so that damage
// reaches the reader's depth. What opens is run: some hops, a flush, a saved and restored state. Exit status 0: nothing crashed.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/kernels.h"
#include "edgekit/edgekit.h"
#include "tests/tiny_model.h"
#include "tools/wav.h"

using namespace ek_test;

namespace {

constexpr uint32_t kOddNumbers[] = {0,          1,          2,          3,          4,          5,          7,          8,          9,          16,        64,
                                    127,        128,        255,        256,        1023,       1024,       1025,       4096,       65535,     65536,     0x3f800000,
                                    0x7f7fffff, 0x7f800000, 0x7fc00000, 0xff800000, 0x00000001, 0x80000000, 0x7fffffff, 0xffffffff, 0xfffffff, 0x4f000000};

uint32_t odd_number(Random& random) {
  return random.one_in(4) ? random.bits() : kOddNumbers[random.below(sizeof kOddNumbers / sizeof *kOddNumbers)];
}

TinyModel random_shape(Random& random) {
  TinyModel model;
  const uint32_t formats[] = {ek::STORED_F32, ek::STORED_F16, ek::STORED_I8};
  model.format = formats[random.below(3)];
  model.n_fft = random.one_in(8) ? 32 : 16;
  model.hop = 1u + random.below(4);
  model.win = model.hop * (2 + random.below(3));
  model.mask = random.below(3);
  model.look_ahead = random.below(2);
  model.is_gru = random.below(2);
  const uint32_t depth = random.one_in(4) ? 3 : 2;
  const auto channels = [&](uint32_t n) {
    std::vector<uint32_t> values(n);
    for (uint32_t& c : values) c = 1 + random.below(random.one_in(50) ? 18 : 2);
    return values;
  };
  model.encoder = channels(depth);
  model.decoder = channels(depth);
  model.hidden = channels(1 + random.below(2));
  model.sums_fit = !random.one_in(4);
  model.seed = random.bits();
  return model;
}

void damage(Random& random, Bytes* bytes, size_t header) {
  const uint32_t times = 1 + random.below(3);
  for (uint32_t k = 0; k < times && !bytes->empty(); k++) {
    const size_t n = bytes->size();
    switch (random.below(8)) {
      case 0: (*bytes)[random.below(static_cast<uint32_t>(n))] ^= static_cast<unsigned char>(1u << random.below(8)); break;
      case 1: (*bytes)[random.below(static_cast<uint32_t>(n))] = static_cast<unsigned char>(random.bits()); break;
      case 2:
      case 3:  // a number of the header
        if (n >= 4 && header >= 4) set_u32(bytes, 4 * random.below(static_cast<uint32_t>((header < n ? header : n) / 4)), odd_number(random));
        break;
      case 4:
      case 5:  // a number of a tensor
        if (n >= 4) set_u32(bytes, 4 * random.below(static_cast<uint32_t>(n / 4)), odd_number(random));
        break;
      case 6: bytes->resize(random.one_in(2) ? random.below(static_cast<uint32_t>(n) + 1) : n - n % 64 - (n > 64 ? 64 : 0)); break;
      case 7: bytes->resize(n + random.below(200)); break;
    }
  }
}

void must(bool is_so, const char* what, uint64_t seed) {
  if (is_so) return;
  fprintf(stderr, "seed %" PRIu64 ": %s\n", seed, what);
  exit(1);
}

// Runs what opened; NaN weights cannot be in it, but sums may still overflow.
void run(ek_stream* stream, size_t hop) {
  float audio[64];
  Random noise(7);
  for (float& x : audio) x = noise.uniform();
  for (int k = 0; k < 2; k++) ek_stream_process(stream, audio, audio + 32, hop * 2 < 32 ? hop * 2 : 32);
}

void weights(uint64_t seed, uint64_t* opened) {
  Random random(seed);
  const TinyModel shape = random_shape(random);
  Bytes bytes = make_model(shape);
  const size_t header = bytes[12] | static_cast<size_t>(bytes[13]) << 8;
  damage(random, &bytes, header);
  if (!random.one_in(20)) seal(&bytes);
  // A copy of exactly this size, so that a read beyond the end is seen.
  unsigned char* exact = static_cast<unsigned char*>(malloc(bytes.size() + 1)) + 1;  // at an odd address
  if (!bytes.empty()) memcpy(exact, bytes.data(), bytes.size());
  ek_options options = EK_OPTIONS_INIT;
  if (random.one_in(3)) options.isa = "scalar";
  if (shape.format != ek::STORED_I8 && random.one_in(4)) options.precision = EK_PRECISION_BF16;
  else if (shape.format != ek::STORED_I8 && random.one_in(3)) options.algorithm = random.one_in(2) ? EK_ALGORITHM_GAUSS : EK_ALGORITHM_FOUR_MULT;
  ek_model* model = nullptr;
  const ek_status status = ek_model_open_memory(exact, bytes.size(), &options, &model);
  must((status == EK_OK) == (model != nullptr), "a status and a model do not agree", seed);
  must(status == EK_OK || *ek_last_message(), "no sentence", seed);
  free(exact - 1);
  if (!model) return;
  ++*opened;
  ek_info info;
  info.size = sizeof info;
  must(ek_model_info(model, &info) == EK_OK, "no info", seed);
  // Damage can make a valid model of up to 768 kHz hops and 1 GB of frames; running those shows nothing more.
  if (info.stream_bytes < (4u << 20) && info.macs_per_frame < 2000000) {
    ek_stream* stream = nullptr;
    if (ek_stream_create(model, &stream) == EK_OK) {
      run(stream, info.hop_length);
      std::vector<float> rest(ek_stream_latency(stream));
      if (rest.size() < 4096 && random.one_in(4)) must(ek_stream_flush(stream, rest.data(), rest.size()) == EK_OK, "flush failed", seed);
    }
    ek_stream_close(stream);
  }
  ek_model_close(model);
}

void states(uint64_t seed, uint64_t* opened) {
  static ek_model* model = nullptr;
  static ek_stream* stream = nullptr;
  static uint64_t made = ~uint64_t{0};
  Random random(seed);
  if (made != seed / 256) {  // a new model for every 256 states
    ek_stream_close(stream);
    ek_model_close(model);
    model = nullptr;
    stream = nullptr;
    Random shape(seed / 256);
    const Bytes bytes = make_model(random_shape(shape));
    must(ek_model_open_memory(bytes.data(), bytes.size(), nullptr, &model) == EK_OK && ek_stream_create(model, &stream) == EK_OK, "no model", seed);
    made = seed / 256;
  }
  ek_stream_reset(stream);
  run(stream, 4);
  Bytes blob(ek_stream_state_bytes(stream)), before(blob.size()), after(blob.size());
  ek_stream_save(stream, blob.data(), blob.size());
  before = blob;
  damage(random, &blob, 64 + 16);
  if (blob.size() > 64 && !random.one_in(10)) set_u32(&blob, 56, ek::crc32_of(blob.data() + 64, blob.size() - 64));
  Bytes exact(blob);
  exact.shrink_to_fit();
  if (ek_stream_restore(stream, exact.data(), exact.size()) == EK_OK) {
    ++*opened;
    run(stream, 4);
  } else {
    ek_stream_save(stream, after.data(), after.size());
    must(before == after, "a refused state changed the stream", seed);
  }
}

void wavs(uint64_t seed, uint64_t* opened) {
  Random random(seed);
  ek_wav::Wav wav;
  wav.rate_hz = 16000;
  wav.is_float = random.one_in(2);
  wav.samples.resize(random.below(40));
  for (float& x : wav.samples) x = random.uniform();
  Bytes bytes = ek_wav::write_wav(wav);
  damage(random, &bytes, 44);
  Bytes exact(bytes);
  exact.shrink_to_fit();
  ek_wav::Wav got;
  if (ek_wav::read_wav(exact.data(), exact.size(), &got).empty()) ++*opened;
}

}  // namespace

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "all";
  const uint64_t cases = argc > 2 ? strtoull(argv[2], nullptr, 10) : 3000, first = argc > 3 ? strtoull(argv[3], nullptr, 10) : 0;
  const struct {
    const char* name;
    void (*one)(uint64_t, uint64_t*);
  } kinds[] = {{"weights", weights}, {"states", states}, {"wavs", wavs}};
  for (const auto& kind : kinds) {
    if (strcmp(what, "all") != 0 && strcmp(what, kind.name) != 0) continue;
    uint64_t opened = 0;
    for (uint64_t seed = first; seed < first + cases; seed++) {
      kind.one(seed, &opened);
      if (cases >= 100000 && (seed - first + 1) % 100000 == 0) {
        printf("%s: %" PRIu64 " cases, %" PRIu64 " opened\n", kind.name, seed - first + 1, opened);
        fflush(stdout);
      }
    }
    printf("%s: %" PRIu64 " cases, %" PRIu64 " opened, no crash\n", kind.name, cases, opened);
  }
  return 0;
}
