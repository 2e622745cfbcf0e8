#include "stream/threads.h"

#include <climits>
#include <csignal>
#include <cstring>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "core/status.h"

namespace ek {
namespace {

// A phase of a frame takes 2 to 20 us, so its stragglers come within some thousand cycles if their cores are theirs alone.
constexpr int kSpins = 2000, kYields = 4;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

static_assert(sizeof(std::atomic<uint32_t>) == 4, "the kernel waits on the atomic itself");

void sleep_while(std::atomic<uint32_t>* word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>* word) { syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

// Sleepers announce themselves before they look a last time, and who changes the word looks for sleepers after: one of both sees the other.
void wait_for_change(std::atomic<uint32_t>* word, uint32_t value, std::atomic<uint32_t>* sleepers) {
  for (int i = 0; i < kSpins; i++) {
    if (word->load(std::memory_order_acquire) != value) return;
    pause();
  }
  for (int i = 0; i < kYields; i++) {
    if (word->load(std::memory_order_acquire) != value) return;
    sched_yield();
  }
  sleepers->fetch_add(1, std::memory_order_seq_cst);
  while (word->load(std::memory_order_seq_cst) == value) sleep_while(word, value);
  sleepers->fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace

#if defined(__x86_64__)
FloatMode::FloatMode() : before_(_mm_getcsr()) {
  _mm_setcsr(0x9fc0);  // exceptions masked, round to nearest, denormals are zero, flush to zero
}
FloatMode::~FloatMode() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
FloatMode::FloatMode() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" : : "r"(uint64_t{1} << 24));  // flush to zero, round to nearest
}
FloatMode::~FloatMode() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
FloatMode::FloatMode() : before_(0) {}
FloatMode::~FloatMode() {}
#endif

ek_status Team::start(int threads) {
  threads_ = threads;
  // Workers take no signals: those belong to the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  for (int t = 1; t < threads && !error; t++) {
    members_[t] = Member{this, t, {}};
    error = pthread_create(&members_[t].handle, nullptr, main_of, &members_[t]);
    if (!error) started_ = t + 1;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error ? fail(EK_NO_MEMORY, "thread %d of %d cannot be made: %s", started_, threads, strerror(error)) : EK_OK;
}

Team::~Team() {
  if (started_ == 1) return;
  closing_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(&round_);
  for (int t = 1; t < started_; t++) pthread_join(members_[t].handle, nullptr);
}

void* Team::main_of(void* argument) {
  Member* member = static_cast<Member*>(argument);
  Team* team = member->team;
  FloatMode mode;
  for (uint32_t seen = 0;; seen++) {
    wait_for_change(&team->round_, seen, &team->sleepers_);
    if (team->closing_.load(std::memory_order_relaxed)) return nullptr;
    team->work_(team->context_, team, member->thread);
    team->wait_for_all();
  }
}

void Team::run(Work work, void* context) {
  if (threads_ == 1) return work(context, this, 0);
  work_ = work;
  context_ = context;
  round_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) wake_all(&round_);
  work(context, this, 0);
  wait_for_all();
}

void Team::wait_for_all() {
  const uint32_t meeting = meeting_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    meeting_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst)) wake_all(&meeting_);
  } else {
    wait_for_change(&meeting_, meeting, &sleepers_);
  }
}

}  // namespace ek
