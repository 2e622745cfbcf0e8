#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace ek {
namespace {
thread_local char message[512] = "";
}

ek_status fail(ek_status code, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return code;
}

}  // namespace ek

#ifndef EK_VERSION
#define EK_VERSION "0"
#endif

const char* ek_version(void) { return EK_VERSION; }

const char* ek_last_message(void) { return ek::message; }

const char* ek_status_text(ek_status status) {
  switch (status) {
    case EK_OK: return "all is well";
    case EK_BAD_ARGUMENT: return "an argument cannot be what it is";
    case EK_BAD_FILE: return "the file cannot be read";
    case EK_BAD_MODEL: return "this is not a weight file of this version, or it is damaged";
    case EK_UNSUPPORTED: return "this CPU, this build or these weights cannot do what was asked";
    case EK_NO_MEMORY: return "there is not enough memory";
    case EK_BAD_AUDIO: return "the audio holds numbers that are not samples";
    case EK_BAD_STATE: return "the saved state is damaged or belongs to another model";
    case EK_CUDA_FAILED: return "CUDA failed, and the GPU may have lost what was on it";
  }
  return "unknown status";
}
