#include "files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>

#include "stop.h"

namespace ek {
namespace {

namespace fs = std::filesystem;

// PIPE too: the log goes through a pipe, and its other end may be a connection that broke.
constexpr int kEnding[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};

// What the signal handler deletes: the file that is being written, or "".
char half_written[PATH_MAX];

extern "C" void on_signal(int) {
  if (half_written[0]) unlink(half_written);
  _exit(kInterrupted);
}

// Signals wait while half_written changes.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t ours;
    sigemptyset(&ours);
    for (int number : kEnding) sigaddset(&ours, number);
    sigprocmask(SIG_BLOCK, &ours, &before_);
  }
  ~SignalsWait() { sigprocmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

void name_half_written(const std::string& path) {
  SignalsWait wait;
  memcpy(half_written, path.c_str(), path.size() + 1);
}

Stop cannot(const std::string& what, const std::string& path) { return Stop(kMissing, path + ": cannot " + what + ": " + strerror(errno)); }

void write_all(int file, const char* bytes, size_t size, const std::string& path) {
  while (size > 0) {
    const ssize_t done = write(file, bytes, std::min(size, size_t(1) << 30));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw cannot("write", path);
    bytes += done;
    size -= static_cast<size_t>(done);
  }
}

// The rename itself lasts only once its folder is on the disk.
void sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const int file = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) throw cannot("open", folder);
  const bool is_synced = fsync(file) == 0 || errno == EINVAL || errno == EROFS;  // not every file system syncs folders
  close(file);
  if (!is_synced) throw cannot("sync", folder);
}

}  // namespace

std::string read_file(const std::string& path, size_t limit) {
  struct stat status;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) throw Stop(kDamaged, path + ": cannot be read: " + strerror(errno));
  std::string bytes;
  bool is_whole = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  if (is_whole && static_cast<unsigned long long>(status.st_size) > limit) {
    close(file);
    throw Stop(kDamaged, path + ": " + std::to_string(status.st_size) + " bytes, more than " + std::to_string(limit));
  }
  if (is_whole) {
    bytes.resize(static_cast<size_t>(status.st_size));
    size_t have = 0;
    while (have < bytes.size()) {
      const ssize_t n = read(file, &bytes[have], bytes.size() - have);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      have += static_cast<size_t>(n);
    }
    is_whole = have == bytes.size();
  }
  close(file);
  if (!is_whole) throw Stop(kDamaged, path + ": cannot be read as a file");
  return bytes;
}

void write_file(const std::string& path, const void* bytes, size_t size) {
  const std::string part = path + ".part";
  if (part.size() >= sizeof half_written) throw Stop(kUsage, path + ": the path is too long");
  name_half_written(part);
  const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) throw cannot("write", part);
  try {
    write_all(file, static_cast<const char*>(bytes), size, part);
    if (fsync(file) != 0) throw cannot("sync", part);
  } catch (...) {
    close(file);
    unlink(part.c_str());
    throw;
  }
  if (close(file) != 0 || rename(part.c_str(), path.c_str()) != 0) {
    const Stop stop = cannot("write", path);
    unlink(part.c_str());
    throw stop;
  }
  name_half_written("");
  sync_folder_of(path);
}

void write_file(const std::string& path, const std::string& text) { write_file(path, text.data(), text.size()); }

void forget_file(const std::string& path) {
  for (const std::string& old : {path, path + ".part"}) {
    if (unlink(old.c_str()) != 0 && errno != ENOENT) throw cannot("delete", old);
  }
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw Stop(kMissing, path + ": cannot be made: " + error.message());
}

bool is_file(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

Listing list_folder(const std::string& path) {
  Listing listing;
  std::error_code error;
  fs::directory_iterator entry(path, error);
  if (error) throw Stop(kDamaged, path + ": cannot be read: " + error.message());
  for (; entry != fs::directory_iterator(); entry.increment(error)) {
    const fs::file_status status = entry->symlink_status(error);
    const std::string name = entry->path().filename().string();
    if (!error && fs::is_regular_file(status)) {
      listing.files.push_back(name);
    } else if (!error && fs::is_directory(status)) {
      listing.folders.push_back(name);
    } else {
      throw Stop(kDamaged, path + "/" + name + ": neither a file nor a folder");
    }
  }
  if (error) throw Stop(kDamaged, path + ": cannot be read: " + error.message());
  std::sort(listing.files.begin(), listing.files.end());
  std::sort(listing.folders.begin(), listing.folders.end());
  return listing;
}

bool is_file_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.size() <= 200 &&
         name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") == std::string::npos;
}

void leave_cleanly_on_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (int number : kEnding) sigaction(number, &action, nullptr);
}

}  // namespace ek
