// A few threads that do one frame together. They wait for the next frame in the kernel after a short spin, and for each other within a
// frame likewise: nothing spins without bound, and nothing is locked.
#ifndef EK_STREAM_THREADS_H
#define EK_STREAM_THREADS_H

#include <atomic>
#include <cstdint>

#include <pthread.h>

#include "edgekit/edgekit.h"

namespace ek {

// Denormals are zero and rounding is to nearest while this lives; then the caller's floating-point mode is back.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  uint64_t before_;
};

class Team {
 public:
  Team() = default;
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team();

  // Makes threads - 1 threads, none for 1.
  ek_status start(int threads);
  int threads() const { return threads_; }

  using Work = void (*)(void* context, Team* team, int thread);
  // Calls work once on every thread, as thread 0 on this one, and returns when all are done.
  void run(Work work, void* context);
  // Within work: nobody goes on before everybody is here, and then sees what everybody wrote.
  void meet() {
    if (threads_ > 1) wait_for_all();
  }

 private:
  struct Member {
    Team* team;
    int thread;
    pthread_t handle;
  };
  static void* main_of(void* member);
  void wait_for_all();

  int threads_ = 1, started_ = 1;
  Member members_[EK_MAX_THREADS];
  Work work_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};     // frames begun
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> meeting_{0};   // meetings held
  alignas(64) std::atomic<uint32_t> sleepers_{0};  // threads in the kernel, of either wait
  std::atomic<bool> closing_{false};
};

}  // namespace ek
#endif
