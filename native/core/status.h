// How a failing call says what was wrong: a code, and a sentence kept for the calling thread.
#ifndef EK_CORE_STATUS_H
#define EK_CORE_STATUS_H

#include "edgekit/edgekit.h"

namespace ek {

// Keeps the sentence for ek_last_message() and hands the code back: `return fail(EK_BAD_MODEL, "...", ...)`.
__attribute__((format(printf, 2, 3))) ek_status fail(ek_status code, const char* format, ...);

}  // namespace ek
#endif
