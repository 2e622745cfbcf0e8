// JSON, as much as reports and a bundle's flow.json need: a value, a strict reader, a writer.
#ifndef EK_TRT_JSON_H
#define EK_TRT_JSON_H

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ek {

class Json {
 public:
  enum Kind { kNull, kBoolean, kNumber, kString, kArray, kObject };
  using Member = std::pair<std::string, Json>;

  Json() = default;
  Json(bool value) : kind_(kBoolean), number_(value) {}
  Json(double value);  // null when it is not finite: JSON has no word for that
  Json(int value) : Json(static_cast<double>(value)) {}
  Json(int64_t value) : Json(static_cast<double>(value)) {}
  Json(uint64_t value) : Json(static_cast<double>(value)) {}
  Json(std::string value) : kind_(kString), text_(std::move(value)) {}
  Json(const char* value) : Json(std::string(value)) {}
  static Json array() { return Json(kArray); }
  static Json object() { return Json(kObject); }
  template <class Items>
  static Json list(const Items& items) {
    Json made = array();
    for (const auto& item : items) made.add(item);
    return made;
  }

  // The whole text is one value; no member twice. Throws kDamaged: `where`, what, and the position.
  static Json parse(const std::string& text, const std::string& where);
  std::string dump() const;  // one line, members in the order they were added

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == kNull; }
  // Each throws kDamaged when the value is of another kind.
  double number() const;
  const std::string& text() const;
  const std::vector<Json>& items() const;
  const std::vector<Member>& members() const;

  const Json* find(const std::string& name) const;  // nullptr when there is no such member
  const Json& at(const std::string& name) const;    // throws kDamaged then

  void add(Json item) { items_.push_back(std::move(item)); }
  void set(const std::string& name, Json value) { members_.emplace_back(name, std::move(value)); }

 private:
  explicit Json(Kind kind) : kind_(kind) {}
  void write(std::string* out) const;

  Kind kind_ = kNull;
  double number_ = 0;
  std::string text_;
  std::vector<Json> items_;
  std::vector<Member> members_;
};

}  // namespace ek
#endif
