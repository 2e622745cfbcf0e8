// ek_dccrn model.ekd noisy.wav clean.wav: denoises a file as a stream would, and says how long it took.
//
// Exit status: 0 done; 2 the command line, the sound or what was asked for cannot be; 6 the weight file is damaged or none.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "edgekit/edgekit.h"
#include "tools/wav.h"

namespace {

constexpr int kWrong = 2, kDamaged = 6;

constexpr const char* kUsage =
    "usage: ek_dccrn [options] model.ekd noisy.wav clean.wav\n"
    "       ek_dccrn --info model.ekd\n"
    "\n"
    "  --isa NAME        scalar, avx2, avx512, neon or neon_dotprod (default: the best here)\n"
    "  --threads N       1 to 64 (default 1)\n"
    "  --precision NAME  fp32, bf16 or int8 (default: int8 for a quantized file, else fp32)\n"
    "  --algorithm NAME  four_mult, gauss or fast\n"
    "  --chunk N         samples handed over at a time (default: one hop)\n"
    "\n"
    "The sound is one channel of 16-bit PCM or 32-bit float at the model's own rate; others are refused, not converted.\n"
    "The result has the same format and length, and is in time with the noisy sound.\n";

int stop(int code, const std::string& sentence) {
  fprintf(stderr, "ek_dccrn: %s\n", sentence.c_str());
  return code;
}

int stop(ek_status status, const char* where) { return stop(status == EK_BAD_MODEL ? kDamaged : kWrong, std::string(where) + ": " + ek_last_message()); }

struct Command {
  ek_options options = EK_OPTIONS_INIT;
  size_t chunk = 0;
  bool is_info = false;
  std::vector<const char*> files;
};

bool read_number(const char* text, long low, long high, long* value) {
  char* end;
  *value = strtol(text, &end, 10);
  return *text && !*end && *value >= low && *value <= high;
}

// "" or what is wrong.
std::string read_command(int argc, char** argv, Command* command) {
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word.size() < 2 || word.compare(0, 2, "--") != 0) {
      command->files.push_back(argv[i]);
      continue;
    }
    if (word == "--info") {
      command->is_info = true;
      continue;
    }
    if (i + 1 == argc) return word + " needs a value, or is unknown";
    const char* value = argv[++i];
    long number = 0;
    if (word == "--isa") {
      command->options.isa = value;
    } else if (word == "--threads") {
      if (!read_number(value, 1, EK_MAX_THREADS, &number)) return std::string("--threads ") + value + ": a number from 1 to 64 is needed";
      command->options.threads = static_cast<int32_t>(number);
    } else if (word == "--chunk") {
      if (!read_number(value, 1, 1 << 30, &number)) return std::string("--chunk ") + value + ": a number of samples from 1 on is needed";
      command->chunk = static_cast<size_t>(number);
    } else if (word == "--precision" || word == "--algorithm") {
      const bool is_precision = word == "--precision";
      const char* names[] = {"fp32", "bf16", "int8", "four_mult", "gauss", "fast"};
      int found = 0;
      for (int k = is_precision ? 0 : 3; k < (is_precision ? 3 : 6); k++) {
        if (strcmp(names[k], value) == 0) found = k + 1 - (is_precision ? 0 : 3);
      }
      if (!found) return word + " " + value + (is_precision ? ": one of fp32, bf16, int8 is needed" : ": four_mult, gauss or fast is needed");
      (is_precision ? command->options.precision : command->options.algorithm) = found;
    } else {
      return "unknown option " + word;
    }
  }
  const size_t wanted = command->is_info ? 1 : 3;
  return command->files.size() == wanted ? "" : "the command needs " + std::string(wanted == 1 ? "a model" : "a model, a noisy file and a clean file");
}

bool read_file(const char* path, std::vector<unsigned char>* bytes) {
  FILE* file = fopen(path, "rb");
  if (!file) return false;
  unsigned char block[65536];
  for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;) bytes->insert(bytes->end(), block, block + n);
  const bool is_whole = !ferror(file);
  fclose(file);
  return is_whole;
}

bool write_file(const char* path, const std::vector<unsigned char>& bytes) {
  FILE* file = fopen(path, "wb");
  if (!file) return false;
  const bool is_written = fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  return fclose(file) == 0 && is_written;
}

void print_info(const ek_info& info) {
  const char* masks[] = {"E", "C", "R"};
  printf("%u Hz, window %u, hop %u, FFT %u, mask %s, %s, weights %s\n", info.sample_rate_hz, info.win_length, info.hop_length, info.n_fft, masks[info.mask],
         info.look_ahead ? "look-ahead" : "causal", info.weight_format == 3 ? "int8" : info.weight_format == 1 ? "f16" : "f32");
  printf("encoder");
  for (uint32_t i = 1; i <= info.depth; i++) printf(" %u", info.encoder_channels[i]);
  printf(" | %s", info.rnn_kind ? "gru" : "lstm");
  for (uint32_t i = 0; i < info.rnn_layers; i++) printf(" %u", info.hidden[i]);
  printf(" | decoder");
  for (uint32_t i = 0; i <= info.depth; i++) printf(" %u", info.decoder_channels[i]);
  printf(" complex channels\n%llu parameters, %.2f million multiplications a frame, latency %u samples (%.1f ms)\n", static_cast<unsigned long long>(info.parameters),
         static_cast<double>(info.macs_per_frame) * 1e-6, info.latency_samples, 1000.0 * info.latency_samples / info.sample_rate_hz);
}

int denoise(const Command& command) {
  const char* noisy_path = command.files[1];
  std::vector<unsigned char> bytes;
  if (!read_file(noisy_path, &bytes)) return stop(kWrong, std::string(noisy_path) + ": cannot be read");
  ek_wav::Wav wav;
  const std::string wrong = ek_wav::read_wav(bytes.data(), bytes.size(), &wav);
  if (!wrong.empty()) return stop(kWrong, std::string(noisy_path) + ": " + wrong);

  ek_model* model = nullptr;
  ek_stream* stream = nullptr;
  const auto close = [&](int code) {
    ek_stream_close(stream);
    ek_model_close(model);
    return code;
  };
  ek_status status = ek_model_open(command.files[0], &command.options, &model);
  if (status != EK_OK) return close(stop(status, command.files[0]));
  ek_info info;
  info.size = sizeof info;
  ek_model_info(model, &info);
  if (wav.rate_hz != info.sample_rate_hz) {
    return close(stop(kWrong, std::string(noisy_path) + ": has " + std::to_string(wav.rate_hz) + " Hz, the model needs " + std::to_string(info.sample_rate_hz) + "; resample it first"));
  }
  status = ek_stream_create(model, &stream);
  if (status != EK_OK) return close(stop(status, command.files[0]));

  // The sound and then the rest that flush gives: what comes first by the latency is dropped.
  const size_t n = wav.samples.size(), latency = ek_stream_latency(stream), chunk = command.chunk ? command.chunk : info.hop_length;
  std::vector<float> out(n + latency);
  double slowest = 0;
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  const auto begin = now();
  for (size_t at = 0; at < n; at += chunk) {
    const auto before = now();
    status = ek_stream_process(stream, wav.samples.data() + at, out.data() + at, std::min(chunk, n - at));
    if (status != EK_OK) return close(stop(status, noisy_path));
    slowest = std::max(slowest, seconds(before, now()));
  }
  status = ek_stream_flush(stream, out.data() + n, latency);
  if (status != EK_OK) return close(stop(status, noisy_path));
  const double took = seconds(begin, now()), length = static_cast<double>(n) / info.sample_rate_hz;

  out.erase(out.begin(), out.begin() + static_cast<ptrdiff_t>(latency));
  wav.samples = out;
  if (!write_file(command.files[2], ek_wav::write_wav(wav))) return close(stop(kWrong, std::string(command.files[2]) + ": cannot be written"));
  printf("%.2f s in %.3f s, RTF %.4f, slowest chunk of %zu samples %.2f ms, latency %.1f ms, %s, %d thread%s\n", length, took, length > 0 ? took / length : 0.0, chunk,
         1000 * slowest, 1000.0 * static_cast<double>(latency) / info.sample_rate_hz, info.row, info.threads, info.threads > 1 ? "s" : "");
  return close(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "--version") == 0)) {
    if (strcmp(argv[1], "--help") == 0) fputs(kUsage, stdout);
    else printf("ek_dccrn %s\n", ek_version());
    return 0;
  }
  Command command;
  const std::string wrong = read_command(argc, argv, &command);
  if (!wrong.empty()) {
    fputs(kUsage, stderr);
    return stop(kWrong, wrong);
  }
  if (!command.is_info) return denoise(command);
  ek_info info;
  info.size = sizeof info;
  const ek_status status = ek_file_info(command.files[0], &info);
  if (status != EK_OK) return stop(status, command.files[0]);
  print_info(info);
  return 0;
}
