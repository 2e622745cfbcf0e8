// The device: what it is, and at what clocks it runs.
#ifndef EK_TRT_DEVICE_H
#define EK_TRT_DEVICE_H

#include <string>

#include "json.h"

namespace ek {

// {"tensorrt", "tensorrt_built_for", "cuda_runtime", "cuda_driver", "device", "sm", "memory_bytes"}. Throws kMissing without a device.
Json describe_device();

// The above, and the library is the one that this program was compiled for. Throws kMissing.
Json need_device();

int64_t free_memory();  // of the device, bytes

// Of Jetson's nvpmodel, such as "MODE_15W"; null where there is none.
Json power_mode();

// {"gpu", "cpu", "emc"} in kHz, of what can be read below `sys`.
Json clocks_khz(const std::string& sys = "/sys");

}  // namespace ek
#endif
