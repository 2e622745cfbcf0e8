/* Denoises raw 32-bit float samples from standard input to standard output, hop by hop, as they come:
 *
 *     cc -std=c99 denoise.c -o denoise -I../include -L. -ledgekit
 *     sox noisy.wav -t f32 -r 16000 -c 1 - | ./denoise model.ekd | sox -t f32 -r 16000 -c 1 - clean.wav
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgekit/edgekit.h"

static int stop(const char* where, ek_status status) {
  fprintf(stderr, "%s: %s (%s)\n", where, ek_last_message(), ek_status_text(status));
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: denoise model.ekd < noisy.f32 > clean.f32\n");
    return 2;
  }

  /* Packed once; any number of streams could share it. */
  ek_options options = EK_OPTIONS_INIT;
  ek_model* model = NULL;
  ek_status status = ek_model_open(argv[1], &options, &model);
  if (status != EK_OK) return stop(argv[1], status);

  ek_info info;
  info.size = sizeof info;
  ek_model_info(model, &info);
  fprintf(stderr, "%u Hz, %.1f ms late, kernels %s\n", info.sample_rate_hz, 1000.0 * info.latency_samples / info.sample_rate_hz, info.row);

  ek_stream* stream = NULL;
  status = ek_stream_create(model, &stream);
  if (status != EK_OK) return stop("stream", status);

  /* From here on nothing is allocated. A chunk may have any size; smaller ones wait less. */
  float samples[128];
  size_t n;
  while (status == EK_OK && (n = fread(samples, sizeof *samples, sizeof samples / sizeof *samples, stdin)) > 0) {
    status = ek_stream_process(stream, samples, samples, n);
    if (status == EK_OK) fwrite(samples, sizeof *samples, n, stdout);
  }

  /* What is still on its way. */
  float* rest = malloc(info.latency_samples * sizeof *rest);
  if (status == EK_OK && rest) status = ek_stream_flush(stream, rest, info.latency_samples);
  if (status == EK_OK && rest) fwrite(rest, sizeof *rest, info.latency_samples, stdout);
  free(rest);

  ek_stream_close(stream);
  ek_model_close(model);
  return status == EK_OK ? 0 : stop("denoise", status);
}
