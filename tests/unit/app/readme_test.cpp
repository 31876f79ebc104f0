// The README's flag table is the flag table.
#include <fstream>
#include <iostream>
#include <sstream>

#include "catch.h"
#include "flag_table.h"

using namespace hadal;

namespace {

std::string shown_effect(const FlagSpec& flag) {
  const std::string help(flag.help);
  const std::string reason(flag.reason);
  switch (flag.handling) {
    case FlagHandling::honoured:
      return help;
    case FlagHandling::implied:
      return "no effect: " + help;
    case FlagHandling::cuda_only:
      return help + " (no effect on the CPU backend)";
    case FlagHandling::limited:
      return "only `" + std::string(flag.accepted) + "`: " + reason;
    case FlagHandling::warned:
      return "ignored with a warning: " + reason;
    case FlagHandling::refused:
      return "refused: " + reason;
  }
  return help;
}

std::string flags_markdown() {
  const std::pair<FlagGroup, const char*> groups[] = {
      {FlagGroup::hadal, "hadal's own"},
      {FlagGroup::sglang_a, "SGLang v0.4.3"},
      {FlagGroup::sglang_b, "Later SGLang, already in manifests"},
      {FlagGroup::sglang_c, "SGLang, about parts that hadal does not have"}};
  std::string text;
  for (const auto& [group, title] : groups) {
    text += "\n**" + std::string(title) + "**\n\n| Flag | Default | Effect |\n|---|---|---|\n";
    for (const FlagSpec& flag : flag_table()) {
      if (flag.group != group) {
        continue;
      }
      const std::string shown_default(flag.default_text);
      text += "| `--" + std::string(flag.name) + "` | " + shown_default +
              (shown_default.empty() ? "" : " ") + "| " + shown_effect(flag) + " |\n";
    }
  }
  return text + "\n";
}

}  // namespace

TEST_CASE("README: its flag table is the one that the parser reads", "[app]") {
  std::ifstream file(std::string(HADAL_SOURCE_DIR) + "/README.md");
  std::ostringstream readme;
  readme << file.rdbuf();
  const std::string text = readme.str();
  const std::string begin = "<!-- flags: begin -->\n";
  const size_t from = text.find(begin);
  const size_t to = text.find("<!-- flags: end -->");
  REQUIRE(from != std::string::npos);
  REQUIRE(to != std::string::npos);
  CHECK(text.substr(from + begin.size(), to - from - begin.size()) == flags_markdown());
}

TEST_CASE("README: print the flag table", "[.readme]") {
  std::cout << flags_markdown();
}
