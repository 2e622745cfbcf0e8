// One piece of memory from the system, given out in 64-byte aligned parts and given back as a whole.
#ifndef EK_STREAM_MEMORY_H
#define EK_STREAM_MEMORY_H

#include <cstddef>

namespace ek {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 64;  // behind every part, so that AddressSanitizer sees a step beyond it
#else
constexpr size_t kRedZone = 0;
#endif

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Zeroed; from 2 MB on it begins on a huge page's boundary and asks for huge pages. False: there is no such memory.
  bool reserve(size_t bytes);
  // The next `bytes`, which reserve() must have allowed for.
  void* take(size_t bytes);
  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  size_t used() const { return used_; }
  size_t size() const { return size_; }

  static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64 + kRedZone; }

 private:
  char* base_ = nullptr;
  size_t size_ = 0, used_ = 0;
};

}  // namespace ek
#endif
