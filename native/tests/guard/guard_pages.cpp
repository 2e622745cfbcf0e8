// Every allocation between pages that nobody may touch, for processors where AddressSanitizer does not run (an emulated one).
// Linked into a test with -Wl,--wrap=posix_memalign,--wrap=free. By turns a piece ends exactly where a forbidden page begins, or begins
// exactly where one ends, so that a read too far or too early is a crash. Alignment is that of the piece's size, at most 64.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" void __real_free(void*);

namespace {

constexpr size_t kPage = 4096, kSlots = size_t{1} << 16;
struct Piece {
  char* data;  // null: an empty slot
  char* base;
  size_t bytes;
};
Piece g_pieces[kSlots];  // a hash table with linear probing
size_t g_alive = 0;
bool g_at_end = false;

size_t slot_of(const void* data) { return (reinterpret_cast<uintptr_t>(data) * 0x9e3779b97f4a7c15u) >> 48; }

void* guarded(size_t bytes) {
  const size_t inside = (bytes + kPage - 1) / kPage * kPage, all = inside + 2 * kPage;
  auto* base = static_cast<char*>(mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED || (inside && mprotect(base + kPage, inside, PROT_READ | PROT_WRITE))) std::abort();
  g_at_end = !g_at_end;
  char* data = base + kPage + (g_at_end ? inside - bytes : 0);
  if (inside) memset(base + kPage, 0xa5, inside);
  if (++g_alive == kSlots) std::abort();
  size_t i = slot_of(data);
  while (g_pieces[i].data) i = (i + 1) % kSlots;
  g_pieces[i] = Piece{data, base, all};
  return data;
}

// False: not one of ours.
bool release(void* data) {
  size_t i = slot_of(data);
  while (g_pieces[i].data != data) {
    if (!g_pieces[i].data) return false;
    i = (i + 1) % kSlots;
  }
  if (munmap(g_pieces[i].base, g_pieces[i].bytes)) std::abort();
  g_alive--;
  // What was put behind it because this slot was taken moves up, so that looking up still ends at the first empty slot.
  for (size_t j = (i + 1) % kSlots; g_pieces[j].data; j = (j + 1) % kSlots) {
    const size_t wanted = slot_of(g_pieces[j].data);
    if ((j - wanted) % kSlots < (j - i) % kSlots) continue;
    g_pieces[i] = g_pieces[j];
    i = j;
  }
  g_pieces[i] = Piece{};
  return true;
}

}  // namespace

extern "C" int __wrap_posix_memalign(void** data, size_t, size_t bytes) {
  *data = guarded(bytes);
  return 0;
}
extern "C" void __wrap_free(void* data) {
  if (data && !release(data)) __real_free(data);
}

void* operator new(size_t bytes) { return guarded(bytes); }
void* operator new[](size_t bytes) { return guarded(bytes); }
void operator delete(void* data) noexcept { __wrap_free(data); }
void operator delete[](void* data) noexcept { __wrap_free(data); }
void operator delete(void* data, size_t) noexcept { __wrap_free(data); }
void operator delete[](void* data, size_t) noexcept { __wrap_free(data); }
