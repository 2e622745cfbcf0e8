// Files that are whole or not there, and folders of clips.
#ifndef EK_TRT_FILES_H
#define EK_TRT_FILES_H

#include <cstddef>
#include <string>
#include <vector>

namespace ek {

// Every byte of a regular file. Throws kDamaged when it is missing, no file, or longer than `limit`.
std::string read_file(const std::string& path, size_t limit = size_t(4) << 30);

// Writes PATH.part, syncs it and renames it to PATH, so that PATH is whole whenever it exists. Throws kMissing with errno's sentence.
void write_file(const std::string& path, const void* bytes, size_t size);
void write_file(const std::string& path, const std::string& text);

// Deletes PATH, so that nothing old stands beside what comes now.
void forget_file(const std::string& path);

void make_folder(const std::string& path);  // with its parents
bool is_file(const std::string& path);

// Names in a folder, sorted. A link, or what is neither file nor folder, is refused (kDamaged): what is read here came with a kit.
struct Listing {
  std::vector<std::string> files, folders;
};
Listing list_folder(const std::string& path);

// A name that can be a file: A-Z a-z 0-9 _ . -, no dot in front.
bool is_file_name(const std::string& name);

// From here on INT, TERM, HUP and PIPE delete the file that is half written and end the process with 130.
void leave_cleanly_on_signals();

}  // namespace ek
#endif
