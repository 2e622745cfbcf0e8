// What a full-width int8 stream keeps resident beside its weight file: 10 MB are allowed.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <malloc.h>
#include <unistd.h>

#include "edgekit/edgekit.h"
#include "tests/tiny_model.h"

namespace {

// Of this process, in KB: "VmRSS" now, "VmHWM" at most so far.
long status_kb(const char* what) {
  FILE* file = fopen("/proc/self/status", "r");
  if (!file) return -1;
  char line[256];
  long kb = -1;
  while (fgets(line, sizeof line, file)) {
    if (strncmp(line, what, strlen(what)) == 0) kb = strtol(line + strlen(what) + 1, nullptr, 10);
  }
  fclose(file);
  return kb;
}

}  // namespace

int main() {
  char path[] = "/tmp/ek_memory_XXXXXX";
  const int handle = mkstemp(path);
  if (handle < 0) return 1;
  size_t file_bytes;
  {
    ek_test::TinyModel model;
    model.format = ek::STORED_I8;
    model.n_fft = 512, model.win = 400, model.hop = 100;
    model.encoder = {16, 32, 64, 128, 128, 128};
    model.decoder = {128, 128, 128, 64, 32, 16};
    model.hidden = {128, 128};
    const ek_test::Bytes bytes = ek_test::make_model(model);
    file_bytes = bytes.size();
    if (write(handle, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) return 1;
  }
  close(handle);
  malloc_trim(0);

  const long before = status_kb("VmRSS:");
  ek_model* model = nullptr;
  ek_stream* stream = nullptr;
  bool is_ok = ek_model_open(path, nullptr, &model) == EK_OK && ek_stream_create(model, &stream) == EK_OK;
  unlink(path);
  float audio[800] = {0.1f, -0.2f};
  for (int k = 0; is_ok && k < 20; k++) is_ok = ek_stream_process(stream, audio, audio, 800) == EK_OK;
  const long after = status_kb("VmRSS:");
  ek_info info;
  info.size = sizeof info;
  is_ok = is_ok && ek_model_info(model, &info) == EK_OK;
  if (!is_ok) {
    fprintf(stderr, "%s\n", ek_last_message());
    return 1;
  }
  printf("weight file %zu KB; resident %ld KB more than before (packed %llu KB, stream %llu KB), whole process %ld KB, row %s\n", file_bytes >> 10, after - before,
         static_cast<unsigned long long>(info.packed_bytes >> 10), static_cast<unsigned long long>(info.stream_bytes >> 10), after, info.row);
  ek_stream_close(stream);
  ek_model_close(model);
  return after - before <= 10 * 1024 ? 0 : 1;
}
