// The C API: models, streams and their states.
#include <cmath>
#include <cstring>
#include <new>

#include "core/kernels.h"
#include "core/status.h"
#include "stream/file.h"
#include "stream/memory.h"
#include "stream/network.h"
#include "stream/stft.h"
#include "stream/threads.h"

using namespace ek;

struct ek_model {
  Shape shape;
  Network network;
  Arena tables;
  Stft stft;
  ek_info info;
};

namespace {

constexpr float kLoudest = 65536.0f;            // beyond this nothing is audio, not even 16-bit numbers that were not scaled
constexpr float kLargestBin = kLoudest * 4096;  // of a spectrum
constexpr uint64_t kMostSteps = uint64_t{1} << 62;

// Where a stream stands; at the begin of its state.
struct Position {
  uint64_t steps;    // hops taken in since the reset
  uint32_t samples;  // of the next hop
  uint32_t zero;
};
constexpr size_t kPositionBytes = 64;

// What a saved state begins with. Everything must be as in the stream that takes it back.
struct StateHeader {
  char magic[8];
  uint32_t version, model_crc32;
  uint64_t bytes;  // of the state behind this
  char row[24];
  int32_t precision, algorithm;
  uint32_t state_crc32, zero;
};
constexpr char kStateMagic[8] = {'E', 'K', 'S', 'T', 'A', 'T', 'E', '\0'};
constexpr uint32_t kStateVersion = 2;
static_assert(sizeof(StateHeader) == 64, "no padding: it is compared and written as bytes");

}  // namespace

struct ek_stream {
  const ek_model* model;
  Arena arena;
  Team team;
  Step step;

  char* state;  // [Position][history][block][overlap][network]; all of it is what a saved state holds
  size_t state_bytes;
  Position* position;
  float* history;  // [win_length] the newest samples
  float* block;    // [hop_length] what goes out while the next hop comes in
  float* overlap;  // [win_length] sums of windowed frames from `block`'s end on
  char* network_state;

  float* mask;     // [2][bins]
  float* masked;   // [bins][re, im]
  float* samples;  // [win_length]
  float* scratch;
};

namespace {

// ---- options and information ----

ek_status read_options(const ek_options* given, ek_options* options) {
  *options = EK_OPTIONS_INIT;
  if (given) {
    if (given->size < sizeof(size_t) + sizeof(char*)) return fail(EK_BAD_ARGUMENT, "options.size is %zu: begin with EK_OPTIONS_INIT", given->size);
    // A newer caller's struct is longer; what this library does not know must be left at 0.
    const char* bytes = reinterpret_cast<const char*>(given);
    for (size_t i = sizeof *options; i < given->size && i < 4096; i++) {
      if (bytes[i]) return fail(EK_UNSUPPORTED, "the options set something that this version of the library does not have");
    }
    memcpy(options, given, given->size < sizeof *options ? given->size : sizeof *options);
    options->size = sizeof *options;
  }
  if (options->precision < EK_PRECISION_AUTO || options->precision > EK_PRECISION_INT8) return fail(EK_BAD_ARGUMENT, "%d is no precision", options->precision);
  if (options->algorithm < EK_ALGORITHM_AUTO || options->algorithm > EK_ALGORITHM_FAST) return fail(EK_BAD_ARGUMENT, "%d is no algorithm", options->algorithm);
  if (options->threads < 1 || options->threads > EK_MAX_THREADS) return fail(EK_BAD_ARGUMENT, "%d threads; 1 to %d are possible", options->threads, EK_MAX_THREADS);
  return EK_OK;
}

struct Choice {
  const Row* row;
  const char* isa;
  ek_precision precision;
  ek_algorithm algorithm;
};

// Where it was measured to be, on a whole frame at full width.
bool is_gauss_faster(const Row& row) { return strcmp(row.name, "avx512_f32") == 0 || strcmp(row.name, "avx2_f32") == 0; }

// Whether what a layer's older and newer frames are weighted with can be added in int8: of the two, neighbours in the file.
bool sums_fit(const Tensor& weight) {
  bool fit = true;
  for (size_t i = 0; i < weight.count; i += 2) {
    const int sum = weight.int8_at(i) + weight.int8_at(i + 1);
    fit &= sum >= -127 && sum <= 127;
  }
  return fit;
}

// Null, or why `row` cannot share products between frames of this file.
const char* lacks_fast(const Row& row, const WeightFile& file) {
  static_assert(kKernelT == 2, "older and newer");
  if (!row.change_row) return "these kernels have no such form";
  for (int i = 0; i + 1 < file.shape.depth && row.format == EK_I8; i++) {
    if (!sums_fit(file.encoder[i + 1].weight) || !sums_fit(file.decoder[i].weight)) return "the weights of two frames do not add up within int8: build the file again";
  }
  return nullptr;
}

ek_status choose(const WeightFile& file, const ek_options& options, Choice* choice) {
  const bool is_int8 = file.format == STORED_I8;
  choice->precision = static_cast<ek_precision>(options.precision);
  if (choice->precision == EK_PRECISION_AUTO) choice->precision = is_int8 ? EK_PRECISION_INT8 : EK_PRECISION_FP32;
  if (is_int8 != (choice->precision == EK_PRECISION_INT8)) {
    return is_int8 ? fail(EK_UNSUPPORTED, "the weight file is quantized to int8 and runs in nothing else; fp32 and bf16 need the float file")
                   : fail(EK_UNSUPPORTED, "int8 needs a quantized weight file, with the scales of its activations; this one holds floats");
  }
  choice->isa = options.isa ? options.isa : best_isa();
  if (!choice->isa) return EK_UNSUPPORTED;
  choice->row = row_for(choice->isa, is_int8 ? EK_I8 : choice->precision == EK_PRECISION_BF16 ? EK_BF16 : EK_F32);
  if (!choice->row) return EK_UNSUPPORTED;
  choice->algorithm = static_cast<ek_algorithm>(options.algorithm);
  if (choice->algorithm == EK_ALGORITHM_GAUSS && choice->precision != EK_PRECISION_FP32) {
    return fail(EK_UNSUPPORTED, "Gauss's three products are for fp32 alone: sums of two int8 or bf16 numbers do not fit their format");
  }
  // The scalar row stays plain unless it is asked: it is the definition. Who asks for another algorithm does not wait for a look at all weights.
  const bool may_be_fast = choice->algorithm == EK_ALGORITHM_FAST || (choice->algorithm == EK_ALGORITHM_AUTO && strncmp(choice->row->name, "scalar", 6) != 0);
  const char* lacks = may_be_fast ? lacks_fast(*choice->row, file) : nullptr;
  if (choice->algorithm == EK_ALGORITHM_FAST && lacks) {
    return fail(EK_UNSUPPORTED, "the kernels %s cannot share products between frames (%s); four_mult always works", choice->row->name, lacks);
  }
  if (choice->algorithm == EK_ALGORITHM_AUTO) {
    choice->algorithm = may_be_fast && !lacks ? EK_ALGORITHM_FAST
                        : choice->precision == EK_PRECISION_FP32 && is_gauss_faster(*choice->row) ? EK_ALGORITHM_GAUSS : EK_ALGORITHM_FOUR_MULT;
  }
  return EK_OK;
}

bool takes_gauss(const Choice& choice) {
  return choice.algorithm == EK_ALGORITHM_GAUSS || (choice.algorithm == EK_ALGORITHM_FAST && choice.precision == EK_PRECISION_FP32 && is_gauss_faster(*choice.row));
}

void describe(const WeightFile& file, ek_info* info) {
  const Shape& shape = file.shape;
  *info = ek_info{};
  info->size = sizeof *info;
  info->format_version = 1;
  info->weight_format = file.format;
  info->sample_rate_hz = static_cast<uint32_t>(shape.sample_rate_hz);
  info->win_length = static_cast<uint32_t>(shape.win_length);
  info->hop_length = static_cast<uint32_t>(shape.hop_length);
  info->n_fft = static_cast<uint32_t>(shape.n_fft);
  info->bins = static_cast<uint32_t>(shape.bins());
  info->depth = static_cast<uint32_t>(shape.depth);
  info->mask = shape.mask;
  info->look_ahead = shape.look_ahead;
  info->rnn_kind = shape.is_gru;
  info->rnn_layers = static_cast<uint32_t>(shape.rnn_layers);
  for (int i = 0; i <= shape.depth; i++) {
    info->encoder_channels[i] = static_cast<uint32_t>(shape.c_enc[i]);
    info->decoder_channels[i] = static_cast<uint32_t>(shape.c_dec[i]);
  }
  for (int l = 0; l < shape.rnn_layers; l++) info->hidden[l] = static_cast<uint32_t>(shape.hidden[l]);
  info->crc32 = file.crc32;
  info->file_bytes = file.bytes;
  info->parameters = file.parameters;
  info->macs_per_frame = count_macs(shape);
  info->latency_samples = static_cast<uint32_t>(shape.win_length + shape.delay() * shape.hop_length);
}

ek_status copy_info(const ek_info& from, ek_info* info) {
  if (!info) return fail(EK_BAD_ARGUMENT, "info is null");
  const size_t size = info->size;
  if (size < 64 || size > 65536) return fail(EK_BAD_ARGUMENT, "info.size is %zu: set it to sizeof(ek_info)", size);
  memset(info, 0, size);
  memcpy(info, &from, size < sizeof from ? size : sizeof from);
  info->size = size;
  return EK_OK;
}

size_t stream_state_bytes(const ek_model& model) {
  const size_t win = Arena::padded(4 * static_cast<size_t>(model.shape.win_length));
  return kPositionBytes + 2 * win + Arena::padded(4 * static_cast<size_t>(model.shape.hop_length)) + model.network.state_bytes();
}

size_t stream_bytes(const ek_model& model) {
  const size_t bins = Arena::padded(8 * static_cast<size_t>(model.shape.bins()));
  return Arena::padded(stream_state_bytes(model)) + model.network.step_bytes(model.info.threads) + 2 * bins + Arena::padded(4 * static_cast<size_t>(model.shape.win_length)) +
         Arena::padded(4 * model.stft.scratch());
}

// ---- audio ----

// True also for NaN: every comparison with it is false.
bool holds_more_than(float most, const float* x, size_t n) {
  size_t bad = 0;
  for (size_t i = 0; i < n; i++) bad += !(std::fabs(x[i]) <= most);
  return bad != 0;
}

ek_status check_audio(const float* in, size_t n) {
  if (!holds_more_than(kLoudest, in, n)) return EK_OK;
  for (size_t i = 0; i < n; i++) {
    if (!(std::fabs(in[i]) <= kLoudest)) return fail(EK_BAD_AUDIO, "sample %zu of %zu is %g; samples are finite and within +-65536, nominally within +-1", i, n, static_cast<double>(in[i]));
  }
  return EK_OK;
}

// One hop: the newest window goes in, and the hop of samples that is then complete becomes `block`.
// `frames` is the clip's number of frames, where that is known: what comes later is no frame. While it is not, it is as large as can be.
void take_hop(ek_stream* stream, uint64_t frames) {
  const ek_model& model = *stream->model;
  const Shape& shape = model.shape;
  const size_t win = static_cast<size_t>(shape.win_length), hop = static_cast<size_t>(shape.hop_length);
  const uint64_t now = stream->position->steps, delay = static_cast<uint64_t>(shape.delay());
  if (now < frames) {
    model.stft.analyse(stream->history, model.network.input(stream->network_state, now, 0), stream->scratch);
    model.network.run(&stream->step, &stream->team, now, stream->mask, 0);
  } else if (now < frames + delay) {
    model.network.run(&stream->step, &stream->team, now, stream->mask, static_cast<int>(now - frames) + 1);
  }
  memmove(stream->history, stream->history + hop, sizeof(float) * (win - hop));

  // The mask is that of the frame `delay` steps ago. With it all frames that reach into its first hop are there.
  const bool is_frame = now >= delay && now - delay < frames;
  if (is_frame) {
    apply_mask(shape.mask, stream->mask, model.network.input(stream->network_state, now, shape.delay()), shape.bins(), stream->masked);
    model.stft.synthesize(stream->masked, stream->samples, stream->scratch);
    for (size_t i = 0; i < win; i++) stream->overlap[i] += stream->samples[i];
  }
  const float* norm = is_frame ? model.stft.full_norm() : model.stft.tail_norm();
  const bool is_padding = now < delay + win / hop - 1;  // what lies before the clip's first sample
  for (size_t i = 0; i < hop; i++) {
    const float y = is_padding ? 0.0f : stream->overlap[i] * norm[i];
    stream->block[i] = y > 1.0f ? 1.0f : y < -1.0f ? -1.0f : y;
  }
  memmove(stream->overlap, stream->overlap + hop, sizeof(float) * (win - hop));
  memset(stream->overlap + (win - hop), 0, sizeof(float) * hop);
  stream->position->steps = now + 1;
}

// `in` may be null: zeros. `out` may be null: dropped.
void push(ek_stream* stream, const float* in, float* out, size_t n, uint64_t frames) {
  const size_t win = static_cast<size_t>(stream->model->shape.win_length), hop = static_cast<size_t>(stream->model->shape.hop_length);
  while (n > 0) {
    const size_t at = stream->position->samples, count = n < hop - at ? n : hop - at;
    float* to = stream->history + (win - hop) + at;
    if (in) {
      memcpy(to, in, sizeof(float) * count);
      in += count;
    } else {
      memset(to, 0, sizeof(float) * count);
    }
    if (out) {
      memcpy(out, stream->block + at, sizeof(float) * count);
      out += count;
    }
    n -= count;
    stream->position->samples = static_cast<uint32_t>(at + count);
    if (at + count == hop) {
      take_hop(stream, frames);
      stream->position->samples = 0;
    }
  }
}

void reset(ek_stream* stream) {
  memset(stream->state, 0, static_cast<size_t>(stream->network_state - stream->state));
  stream->model->network.reset(stream->network_state);
}

// Frames of a clip of `samples`, padded by win - hop at both ends as the reference does.
uint64_t frames_of(const Shape& shape, uint64_t samples) {
  return samples / static_cast<uint64_t>(shape.hop_length) + static_cast<uint64_t>(shape.win_length / shape.hop_length) - 1;
}

uint64_t samples_taken(const ek_stream* stream) {
  return stream->position->steps * static_cast<uint64_t>(stream->model->shape.hop_length) + stream->position->samples;
}

size_t latency_of(const ek_stream* stream) { return stream->model->info.latency_samples; }

StateHeader state_header(const ek_stream* stream) {
  StateHeader header = {};
  memcpy(header.magic, kStateMagic, sizeof header.magic);
  header.version = kStateVersion;
  header.model_crc32 = stream->model->info.crc32;
  header.bytes = stream->state_bytes;
  memcpy(header.row, stream->model->info.row, sizeof header.row);
  header.precision = stream->model->info.precision;
  header.algorithm = stream->model->info.algorithm;
  header.state_crc32 = crc32_of(stream->state, stream->state_bytes);
  return header;
}

ek_status open_model(const void* bytes, size_t n, const ek_options* given, ek_model** model) {
  ek_options options;
  WeightFile file;
  Choice choice = {};
  ek_status status = read_options(given, &options);
  if (status == EK_OK) status = read_weight_file(bytes, n, &file);
  if (status == EK_OK) status = choose(file, options, &choice);
  if (status != EK_OK) return status;

  ek_model* made = new (std::nothrow) ek_model();
  if (!made) return fail(EK_NO_MEMORY, "no memory for a model");
  made->shape = file.shape;
  status = made->network.build(file, choice.row, takes_gauss(choice) ? EK_GAUSS : EK_FOUR_MULT, choice.algorithm == EK_ALGORITHM_FAST, choice.precision == EK_PRECISION_BF16);
  if (status == EK_OK && !made->tables.reserve(Stft::bytes(file.shape))) status = fail(EK_NO_MEMORY, "no memory for the transform's tables");
  if (status != EK_OK) {
    delete made;
    return status;
  }
  made->stft.prepare(file.shape, &made->tables);
  describe(file, &made->info);
  made->info.precision = choice.precision;
  made->info.algorithm = choice.algorithm;
  made->info.threads = options.threads;
  strncpy(made->info.isa, choice.isa, sizeof made->info.isa - 1);
  strncpy(made->info.row, choice.row->name, sizeof made->info.row - 1);
  made->info.packed_bytes = made->network.packed_bytes();
  made->info.stream_bytes = stream_bytes(*made);
  made->info.state_bytes = sizeof(StateHeader) + stream_state_bytes(*made);
  *model = made;
  return EK_OK;
}

}  // namespace

// ---- models ----

ek_status ek_model_open(const char* path, const ek_options* options, ek_model** model) {
  if (!path || !model) return fail(EK_BAD_ARGUMENT, "path or model is null");
  *model = nullptr;
  MappedFile file;
  const ek_status status = file.open(path);
  return status == EK_OK ? open_model(file.bytes(), file.size(), options, model) : status;
}

ek_status ek_model_open_memory(const void* bytes, size_t n, const ek_options* options, ek_model** model) {
  if (!bytes || !model) return fail(EK_BAD_ARGUMENT, "bytes or model is null");
  *model = nullptr;
  return open_model(bytes, n, options, model);
}

ek_status ek_model_info(const ek_model* model, ek_info* info) {
  if (!model) return fail(EK_BAD_ARGUMENT, "model is null");
  return copy_info(model->info, info);
}

void ek_model_close(ek_model* model) { delete model; }

ek_status ek_file_info(const char* path, ek_info* info) {
  if (!path) return fail(EK_BAD_ARGUMENT, "path is null");
  MappedFile bytes;
  WeightFile file;
  ek_status status = bytes.open(path);
  if (status == EK_OK) status = read_weight_file(bytes.bytes(), bytes.size(), &file);
  if (status != EK_OK) return status;
  ek_info found;
  describe(file, &found);
  return copy_info(found, info);
}

// ---- streams ----

ek_status ek_stream_create(const ek_model* model, ek_stream** stream) {
  if (!model || !stream) return fail(EK_BAD_ARGUMENT, "model or stream is null");
  *stream = nullptr;
  ek_stream* made = new (std::nothrow) ek_stream();
  if (!made || !made->arena.reserve(stream_bytes(*model))) {
    delete made;
    return fail(EK_NO_MEMORY, "no memory for a stream of %llu bytes", static_cast<unsigned long long>(model->info.stream_bytes));
  }
  const size_t win = static_cast<size_t>(model->shape.win_length), hop = static_cast<size_t>(model->shape.hop_length), bins = static_cast<size_t>(model->shape.bins());
  made->model = model;
  Arena& arena = made->arena;
  made->state_bytes = stream_state_bytes(*model);
  made->state = static_cast<char*>(arena.take(made->state_bytes));
  made->position = reinterpret_cast<Position*>(made->state);
  char* at = made->state + kPositionBytes;
  const auto floats = [&](size_t n) {
    float* piece = reinterpret_cast<float*>(at);
    at += Arena::padded(sizeof(float) * n);
    return piece;
  };
  made->history = floats(win);
  made->block = floats(hop);
  made->overlap = floats(win);
  made->network_state = at;
  model->network.prepare(&made->step, made->network_state, model->info.threads, &arena);
  made->mask = arena.take<float>(2 * bins);
  made->masked = arena.take<float>(2 * bins);
  made->samples = arena.take<float>(win);
  made->scratch = arena.take<float>(model->stft.scratch());
  reset(made);
  const ek_status status = made->team.start(model->info.threads);
  if (status != EK_OK) {
    delete made;
    return status;
  }
  *stream = made;
  return EK_OK;
}

void ek_stream_close(ek_stream* stream) { delete stream; }

size_t ek_stream_latency(const ek_stream* stream) { return stream ? latency_of(stream) : 0; }

ek_status ek_stream_process(ek_stream* stream, const float* in, float* out, size_t n) {
  if (!stream || (n && (!in || !out))) return fail(EK_BAD_ARGUMENT, "stream, in or out is null");
  const ek_status status = check_audio(in, n);
  if (status != EK_OK) return status;
  FloatMode mode;
  push(stream, in, out, n, kMostSteps);
  return EK_OK;
}

ek_status ek_stream_flush(ek_stream* stream, float* out, size_t capacity) {
  if (!stream || !out) return fail(EK_BAD_ARGUMENT, "stream or out is null");
  const size_t n = latency_of(stream);
  if (capacity < n) return fail(EK_BAD_ARGUMENT, "flush writes %zu samples, there is room for %zu", n, capacity);
  FloatMode mode;
  push(stream, nullptr, out, n, frames_of(stream->model->shape, samples_taken(stream)));
  reset(stream);
  return EK_OK;
}

ek_status ek_stream_reset(ek_stream* stream) {
  if (!stream) return fail(EK_BAD_ARGUMENT, "stream is null");
  reset(stream);
  return EK_OK;
}

size_t ek_stream_state_bytes(const ek_stream* stream) { return stream ? sizeof(StateHeader) + stream->state_bytes : 0; }

ek_status ek_stream_save(const ek_stream* stream, void* blob, size_t capacity) {
  if (!stream || !blob) return fail(EK_BAD_ARGUMENT, "stream or blob is null");
  if (capacity < ek_stream_state_bytes(stream)) return fail(EK_BAD_ARGUMENT, "a state has %zu bytes, there is room for %zu", ek_stream_state_bytes(stream), capacity);
  const StateHeader header = state_header(stream);
  memcpy(blob, &header, sizeof header);
  memcpy(static_cast<char*>(blob) + sizeof header, stream->state, stream->state_bytes);
  return EK_OK;
}

ek_status ek_stream_restore(ek_stream* stream, const void* blob, size_t n) {
  if (!stream || !blob) return fail(EK_BAD_ARGUMENT, "stream or blob is null");
  const char* state = static_cast<const char*>(blob) + sizeof(StateHeader);
  StateHeader header;
  if (n < sizeof header) return fail(EK_BAD_STATE, "%zu bytes are too few for a state", n);
  memcpy(&header, blob, sizeof header);
  const ek_info& info = stream->model->info;
  if (memcmp(header.magic, kStateMagic, sizeof kStateMagic) != 0 || header.version != kStateVersion) return fail(EK_BAD_STATE, "this is not a state of this version");
  if (header.model_crc32 != info.crc32) return fail(EK_BAD_STATE, "the state belongs to another model");
  if (memcmp(header.row, info.row, sizeof header.row) != 0 || header.precision != info.precision || header.algorithm != info.algorithm) {
    return fail(EK_BAD_STATE, "the state was saved with the kernels %.23s, this stream runs %s, or another precision or algorithm", header.row, info.row);
  }
  if (header.bytes != stream->state_bytes || n - sizeof header != stream->state_bytes) {
    return fail(EK_BAD_STATE, "the state has %zu bytes, this stream's has %zu", n, ek_stream_state_bytes(stream));
  }
  if (crc32_of(state, stream->state_bytes) != header.state_crc32) return fail(EK_BAD_STATE, "the state's checksum does not match: it is damaged");
  Position position;
  memcpy(&position, state, sizeof position);
  const size_t audio = static_cast<size_t>(stream->network_state - stream->state);
  bool is_sane = position.samples < info.hop_length && position.steps < kMostSteps / info.hop_length && position.zero == 0;
  for (size_t i = kPositionBytes; i < audio; i += sizeof(float)) {
    float value;
    memcpy(&value, state + i, sizeof value);
    is_sane &= std::isfinite(value);
  }
  if (!is_sane || !stream->model->network.is_sane(state + audio)) return fail(EK_BAD_STATE, "the state holds numbers that no stream has");
  memcpy(stream->state, state, stream->state_bytes);
  return EK_OK;
}

ek_status ek_denoise(ek_stream* stream, const float* in, float* out, size_t n) {
  if (!stream || (n && (!in || !out))) return fail(EK_BAD_ARGUMENT, "stream, in or out is null");
  const ek_status status = check_audio(in, n);
  if (status != EK_OK) return status;
  FloatMode mode;
  reset(stream);
  const uint64_t frames = frames_of(stream->model->shape, n);
  // The first `latency` samples are not the clip's. Afterwards what goes out stays behind what comes in, so `out` may be `in`.
  const size_t latency = latency_of(stream), first = n < latency ? n : latency;
  push(stream, in, nullptr, first, frames);
  if (n > latency) {
    push(stream, in + latency, out, n - latency, frames);
    push(stream, nullptr, out + (n - latency), latency, frames);
  } else {
    push(stream, nullptr, nullptr, latency - n, frames);
    push(stream, nullptr, out, n, frames);
  }
  reset(stream);
  return EK_OK;
}

ek_status ek_step(ek_stream* stream, const float* spectrum, float* mask) {
  if (!stream || !spectrum || !mask) return fail(EK_BAD_ARGUMENT, "stream, spectrum or mask is null");
  const ek_model& model = *stream->model;
  const size_t bins = static_cast<size_t>(model.shape.bins());
  if (holds_more_than(kLargestBin, spectrum, 2 * bins)) return fail(EK_BAD_AUDIO, "the spectrum holds a number that is not finite or beyond all audio");
  FloatMode mode;
  float* pairs = model.network.input(stream->network_state, stream->position->steps, 0);
  for (size_t k = 0; k < bins; k++) {
    pairs[2 * k] = spectrum[k];
    pairs[2 * k + 1] = spectrum[bins + k];
  }
  model.network.run(&stream->step, &stream->team, stream->position->steps, mask, 0);
  stream->position->steps++;
  return EK_OK;
}
