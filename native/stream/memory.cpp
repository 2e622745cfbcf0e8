#include "stream/memory.h"

#include <cassert>
#include <cstdint>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#endif

namespace ek {

namespace {
constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20, kMost = size_t{1} << 40;
}

Arena::~Arena() {
  if (!base_) return;
  ASAN_UNPOISON_MEMORY_REGION(base_, size_);
  munmap(base_, size_);
}

bool Arena::reserve(size_t bytes) {
  assert(!base_);
  if (bytes > kMost) return false;
  const size_t size = (bytes + kPage - 1) / kPage * kPage + (bytes == 0 ? kPage : 0);
  const size_t slack = size >= kHugePage ? kHugePage : 0;
  void* mapped = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return false;
  char* base = static_cast<char*>(mapped);
  if (slack) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
    if (before) munmap(base, before);
    if (slack - before) munmap(base + before + size, slack - before);
    base += before;
    // Only whole huge pages are advised: the rest would take 2 MB for a few KB.
    madvise(base, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
  base_ = base;
  size_ = size;
  return true;
}

void* Arena::take(size_t bytes) {
  const size_t size = padded(bytes);
  assert(size <= size_ - used_);
  char* part = base_ + used_;
  used_ += size;
  ASAN_POISON_MEMORY_REGION(part + bytes, size - bytes);
  return part;
}

}  // namespace ek
