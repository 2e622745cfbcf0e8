#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "stop.h"

namespace ek {
namespace {

constexpr int kDeepest = 64;  // a hostile file may not use up the stack

class Reader {
 public:
  Reader(const std::string& text, const std::string& where) : text_(text), where_(where) {}

  Json whole() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Stop(kDamaged, where_ + ": no JSON: " + what + " at byte " + std::to_string(at_)); }

  void skip_space() {
    while (at_ < text_.size() && strchr(" \t\r\n", text_[at_]) && text_[at_]) at_++;
  }
  bool take(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    at_++;
    return true;
  }
  void need(char wanted) {
    if (!take(wanted)) fail(std::string("`") + wanted + "` is missing");
  }
  bool take_word(const char* word) {
    if (text_.compare(at_, strlen(word), word) != 0) return false;
    at_ += strlen(word);
    return true;
  }

  Json read(int depth) {
    if (depth > kDeepest) fail("too many brackets");
    skip_space();
    if (at_ >= text_.size()) fail("a value is missing");
    if (text_[at_] == '{') return read_object(depth);
    if (text_[at_] == '[') return read_array(depth);
    if (text_[at_] == '"') return Json(read_string());
    if (take_word("true")) return Json(true);
    if (take_word("false")) return Json(false);
    if (take_word("null")) return Json();
    return read_number();
  }

  Json read_object(int depth) {
    Json made = Json::object();
    need('{');
    if (take('}')) return made;
    do {
      skip_space();
      if (at_ >= text_.size() || text_[at_] != '"') fail("a member's name is missing");
      const std::string name = read_string();
      if (made.find(name)) fail("`" + name + "` stands there twice");
      need(':');
      made.set(name, read(depth + 1));
    } while (take(','));
    need('}');
    return made;
  }

  Json read_array(int depth) {
    Json made = Json::array();
    need('[');
    if (take(']')) return made;
    do {
      made.add(read(depth + 1));
    } while (take(','));
    need(']');
    return made;
  }

  bool take_digits() {
    const size_t start = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') at_++;
    return at_ > start;
  }
  bool take_one_of(const char* letters) {
    if (at_ >= text_.size() || !text_[at_] || !strchr(letters, text_[at_])) return false;
    at_++;
    return true;
  }

  // strtod takes more than JSON does, such as `01`, `.5` or `nan`.
  Json read_number() {
    const size_t start = at_;
    take_one_of("-");
    bool is_number = take_one_of("0") || take_digits();
    if (take_one_of(".")) is_number = take_digits() && is_number;
    if (take_one_of("eE")) {
      take_one_of("+-");
      is_number = take_digits() && is_number;
    }
    const double value = strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    if (!is_number || !std::isfinite(value)) fail("no value");
    return Json(value);
  }

  unsigned read_hex() {
    unsigned value = 0;
    for (int i = 0; i < 4; i++, at_++) {
      const char digit = at_ < text_.size() ? text_[at_] : ' ';
      if (!isxdigit(static_cast<unsigned char>(digit))) fail("four hex digits are missing");
      value = value * 16 + static_cast<unsigned>(isdigit(digit) ? digit - '0' : (digit | 32) - 'a' + 10);
    }
    return value;
  }

  std::string read_string() {
    std::string made;
    at_++;
    while (true) {
      if (at_ >= text_.size()) fail("a string has no end");
      const char c = text_[at_++];
      if (c == '"') return made;
      if (static_cast<unsigned char>(c) < 32) fail("a control character in a string");
      if (c != '\\') {
        made += c;
        continue;
      }
      const char kind = at_ < text_.size() ? text_[at_++] : ' ';
      if (kind == 'u') {
        add_utf8(read_code_point(), &made);
        continue;
      }
      const char* known = "\"\\/bfnrt";
      const char* found = kind ? strchr(known, kind) : nullptr;
      if (!found) fail("an unknown escape");
      made += "\"\\/\b\f\n\r\t"[found - known];
    }
  }

  unsigned read_code_point() {
    const unsigned high = read_hex();
    if (high < 0xd800 || high > 0xdfff) return high;
    if (high > 0xdbff || !take_word("\\u")) fail("half a surrogate pair");
    const unsigned low = read_hex();
    if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  static void add_utf8(unsigned code, std::string* out) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const unsigned first[] = {0, 0xc0, 0xe0, 0xf0};
    *out += static_cast<char>(first[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; i--) *out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3f));
  }

  const std::string& text_;
  const std::string& where_;
  size_t at_ = 0;
};

void quote(const std::string& text, std::string* out) {
  *out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (static_cast<unsigned char>(c) < 32) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", c);
      *out += code;
    } else {
      *out += c;
    }
  }
  *out += '"';
}

}  // namespace

Json::Json(double value) : kind_(std::isfinite(value) ? kNumber : kNull), number_(value) {}

Json Json::parse(const std::string& text, const std::string& where) { return Reader(text, where).whole(); }

double Json::number() const {
  if (kind_ != kNumber) throw Stop(kDamaged, "JSON: expected a number");
  return number_;
}
const std::string& Json::text() const {
  if (kind_ != kString) throw Stop(kDamaged, "JSON: expected a string");
  return text_;
}
const std::vector<Json>& Json::items() const {
  if (kind_ != kArray) throw Stop(kDamaged, "JSON: expected a list");
  return items_;
}
const std::vector<Json::Member>& Json::members() const {
  if (kind_ != kObject) throw Stop(kDamaged, "JSON: expected an object");
  return members_;
}

const Json* Json::find(const std::string& name) const {
  for (const Member& member : members_) {
    if (member.first == name) return &member.second;
  }
  return nullptr;
}
const Json& Json::at(const std::string& name) const {
  const Json* found = find(name);
  if (!found) throw Stop(kDamaged, "JSON: `" + name + "` is missing");
  return *found;
}

std::string Json::dump() const {
  std::string out;
  write(&out);
  return out;
}

void Json::write(std::string* out) const {
  char number[40];
  const char* comma = "";
  switch (kind_) {
    case kNull:
      *out += "null";
      break;
    case kBoolean:
      *out += number_ != 0 ? "true" : "false";
      break;
    case kNumber:
      snprintf(number, sizeof number, number_ == std::floor(number_) && std::fabs(number_) < 9e15 ? "%.0f" : "%.9g", number_);
      *out += number;
      break;
    case kString:
      quote(text_, out);
      break;
    case kArray:
      *out += '[';
      for (const Json& item : items_) {
        *out += comma;
        item.write(out);
        comma = ", ";
      }
      *out += ']';
      break;
    case kObject:
      *out += '{';
      for (const Member& member : members_) {
        *out += comma;
        quote(member.first, out);
        *out += ": ";
        member.second.write(out);
        comma = ", ";
      }
      *out += '}';
      break;
  }
}

}  // namespace ek
