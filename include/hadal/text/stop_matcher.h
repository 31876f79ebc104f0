// Finds stop strings in streamed text: holds back only what may still become one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

/// Aho-Corasick over bytes, fed piece by piece: time is linear in the text, whatever the stops are.
/// The answer does not depend on how the text was cut into pieces. Not thread-safe; one per stream.
class StopMatcher {
 public:
  struct Options {
    bool keeps_stop = false;  ///< the matched stop string is part of the text (`no_stop_trim`)
  };

  struct Step {
    std::string text;                ///< to be sent now
    std::optional<int32_t> matched;  ///< index into the stops; from here on nothing more is sent
  };

  /// Empty stops are ignored (the API refuses them); with no stops, text passes through.
  explicit StopMatcher(const std::vector<std::string>& stops, Options options);

  explicit StopMatcher(const std::vector<std::string>& stops) : StopMatcher(stops, Options{}) {}

  /// The stop that ends first wins; of those that end together, the one that begins first. If
  /// `text` and the stops are whole UTF-8 characters, so is what comes out. After a match every
  /// further push is empty.
  Step push(std::string_view text);
  /// The text that was held back, when the stream ends without a match.
  std::string flush();

  std::optional<int32_t> matched() const { return matched_; }

 private:
  struct Edge {
    uint8_t byte;
    int32_t node;
  };

  struct Node {
    std::vector<Edge> edges;  // sorted by byte
    int32_t fail = 0;
    int32_t depth = 0;
    int32_t stop = -1;  // the longest stop that is a suffix of this node's string
  };

  void add(std::string_view stop, int32_t index);
  void link();
  int32_t child(int32_t node, uint8_t byte) const;
  int32_t advance(int32_t node, uint8_t byte) const;

  Options options_;
  std::vector<Node> nodes_;
  std::vector<int64_t> stop_bytes_;  // length of each stop
  int32_t state_ = 0;
  std::string held_;
  std::optional<int32_t> matched_;
};

}  // namespace hadal
