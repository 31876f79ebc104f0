// UTF-8 replacement against vectors made with Python's bytes.decode("utf-8", errors="replace").
#include "utf8.h"

#include <string>
#include <vector>

#include "catch.h"

using hadal::replace_ill_formed;

namespace {
const std::string kFffd = "\xEF\xBF\xBD";
}

TEST_CASE("utf8: ill-formed bytes become U+FFFD as in Python", "[text]") {
  struct Case {
    std::string bytes;
    std::string expected;
  };

  const std::vector<Case> cases = {
      {"abc", "abc"},
      {"\xE4\xBD\xA0", "\xE4\xBD\xA0"},
      {"\xFF", kFffd},
      {"\xC0\xAF", kFffd + kFffd},
      {"\xED\xA0\x80", kFffd + kFffd + kFffd},
      {"\xE2\x82", kFffd},
      {"\xE2\x82x", kFffd + "x"},
      {"\xF0\x9F\x98", kFffd},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", kFffd + "\xF0\x9F\x98\x80"},
      {"\xF4\x90\x80\x80", kFffd + kFffd + kFffd + kFffd},
      {"\xF0\x80\x80\x80", kFffd + kFffd + kFffd + kFffd},
      {"\xE0\x80\x80", kFffd + kFffd + kFffd},
      {"a\x80z", "a" + kFffd + "z"},
  };
  for (const Case& c : cases)
    CHECK(replace_ill_formed(c.bytes) == c.expected);
}

TEST_CASE("utf8: offsets follow their text, and a cut unit belongs to the range", "[text]") {
  std::vector<int64_t> offsets = {1, 2, 3, 5};
  CHECK(replace_ill_formed("a\xFFz\xE2\x82x", &offsets) == "a" + kFffd + "z" + kFffd + "x");
  CHECK(offsets == std::vector<int64_t>{1, 4, 5, 8});
  offsets = {1, 2};  // inside the three-byte character
  CHECK(replace_ill_formed("\xE4\xBD\xA0", &offsets) == "\xE4\xBD\xA0");
  CHECK(offsets == std::vector<int64_t>{0, 3});
}

TEST_CASE("utf8: the valid prefix ends where decoding would replace", "[text]") {
  CHECK(hadal::valid_utf8_prefix("plain ascii, longer than a word") == 31);
  CHECK(hadal::valid_utf8_prefix("12345678\xC3\xA9\xC3") == 10);
  CHECK(hadal::valid_utf8_prefix("") == 0);
}

TEST_CASE("utf8: decided characters leave, an unfinished one stays", "[text]") {
  std::string pending = "a\xF0\x9F\x98";
  CHECK(hadal::take_decided_utf8(&pending) == "a");
  CHECK(pending == "\xF0\x9F\x98");
  pending += "\x80";
  CHECK(hadal::take_decided_utf8(&pending) == "\xF0\x9F\x98\x80");
  CHECK(pending.empty());
  pending = "\xF0\x9F!";
  CHECK(hadal::take_decided_utf8(&pending) == kFffd + "!");
}
