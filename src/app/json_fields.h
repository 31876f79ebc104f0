// Strict reading of small JSON files that people write: what is unknown or out of range is an
// error that says where.
#pragma once

#include <set>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <hadal/base/result.h>

namespace hadal {

/// The text as JSON; invalid_argument when it is none, too deep or no object.
Result<nlohmann::json> parse_json_object(std::string_view text, std::string_view origin);

/// Reads the members of one object; the first thing that is wrong is kept.
class JsonFields {
 public:
  /// Both must outlive it; `where` opens its messages.
  JsonFields(const nlohmann::json& object, std::string where, std::string& error);

  void fail(const std::string& what);

  bool has(const char* name) { return find(name) != nullptr; }

  /// An error when it is absent or no string.
  std::string text(const char* name);
  void toggle(const char* name, bool& out);

  /// Absent or null: `out` stays.
  template <class T>
  void number(const char* name, double low, double high, T& out) {
    double value = static_cast<double>(out);
    if (read_number(name, low, high, value))
      out = static_cast<T>(value);
  }

  /// The object of that name; an empty one when it is absent.
  const nlohmann::json& object(const char* name);
  /// The list of that name; nullptr when it is absent.
  const nlohmann::json* list(const char* name);
  /// To be called last: an error when there are members that nobody asked for.
  void check_names();

 private:
  const nlohmann::json* find(const char* name);
  bool read_number(const char* name, double low, double high, double& out);

  const nlohmann::json& object_;
  std::string where_;
  std::string& error_;
  std::set<std::string> known_;
};

}  // namespace hadal
