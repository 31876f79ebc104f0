// Stop strings: the same answer however the text is cut, nothing held longer than it must be.
#include <algorithm>
#include <random>

#include <hadal/text/stop_matcher.h>

#include "catch.h"

using hadal::StopMatcher;

namespace {

struct Outcome {
  std::string text;
  std::optional<int32_t> matched;

  bool operator==(const Outcome&) const = default;
};

Outcome run(StopMatcher& matcher, const std::vector<std::string>& pieces) {
  Outcome outcome;
  for (const std::string& piece : pieces) {
    const StopMatcher::Step step = matcher.push(piece);
    outcome.text += step.text;
    if (step.matched)
      outcome.matched = step.matched;
  }
  outcome.text += matcher.flush();
  return outcome;
}

/// The definition, slowly: the stop that ends first, and of those the longest.
Outcome expected(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int32_t best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      const std::string& stop = stops[i];
      if (!stop.empty() && end >= stop.size() &&
          text.compare(end - stop.size(), stop.size(), stop) == 0 &&
          (best < 0 || stop.size() > stops[static_cast<size_t>(best)].size()))
        best = static_cast<int32_t>(i);
    }
    if (best >= 0)
      return {text.substr(0, end - stops[static_cast<size_t>(best)].size()), best};
  }
  return {text, std::nullopt};
}

}  // namespace

TEST_CASE("StopMatcher: holds back only what may become a stop", "[text]") {
  StopMatcher matcher({"END", "</s>"});
  CHECK(matcher.push("Hello E").text == "Hello ");
  CHECK(matcher.push("N").text.empty());
  CHECK(matcher.push("T</").text == "ENT");
  CHECK(matcher.push("b").text == "</b");
  CHECK(matcher.push("x</").text == "x");
  CHECK(matcher.flush() == "</");
}

TEST_CASE("StopMatcher: cuts the stop, or keeps it when asked to", "[text]") {
  StopMatcher cutting({"\n\nUser:"});
  CHECK(cutting.push("answer\n\nUs").text == "answer");
  const auto step = cutting.push("er: more");
  CHECK(step.text.empty());
  CHECK(step.matched == 0);
  CHECK(cutting.push("ignored").text.empty());
  CHECK(cutting.flush().empty());
  StopMatcher keeping({"\n\nUser:"}, {.keeps_stop = true});
  CHECK(keeping.push("answer\n\nUser: more").text == "answer\n\nUser:");
  CHECK(keeping.matched() == 0);
}

TEST_CASE("StopMatcher: without stops text passes through", "[text]") {
  StopMatcher none({});
  CHECK(none.push("anything").text == "anything");
  CHECK(none.flush().empty());
  StopMatcher empty({"", "b"});
  CHECK(empty.push("ab").matched == 1);
}

TEST_CASE("StopMatcher: any chunking gives the definition's answer", "[text]") {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    const auto word = [&](size_t longest) {
      std::string text;
      for (size_t n = 1 + random() % longest; n > 0; --n)
        text += static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> stops;
    for (size_t n = 1 + random() % 4; n > 0; --n)
      stops.push_back(word(6) + (random() % 2 ? "c" : ""));
    std::string text;
    for (size_t n = random() % 8; n > 0; --n)
      text += word(4) + (random() % 6 == 0 ? "c" : "");
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t bytes = 1 + random() % 5;
      pieces.push_back(text.substr(at, bytes));
      at += bytes;
    }
    StopMatcher matcher(stops);
    Outcome want = expected(stops, text);
    // Of equal stops the first is named.
    if (want.matched)
      want.matched = static_cast<int32_t>(
          std::find(stops.begin(), stops.end(), stops[static_cast<size_t>(*want.matched)]) -
          stops.begin());
    REQUIRE(run(matcher, pieces) == want);
  }
}

TEST_CASE("StopMatcher: time is linear for the worst stops", "[text]") {
  std::vector<std::string> stops;
  for (int i = 0; i < 64; ++i)
    stops.push_back(std::string(static_cast<size_t>(1000 + i), 'a') + "b");
  StopMatcher matcher(stops);
  int64_t emitted = 0;
  for (int i = 0; i < 300000; ++i)
    emitted += static_cast<int64_t>(matcher.push("aaaa").text.size());
  CHECK(emitted == 1200000 - 1063);
}
