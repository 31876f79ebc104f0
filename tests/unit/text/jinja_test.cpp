// The interpreter against Python's jinja2, through the goldens of tests/data/templates.
#include "catch.h"
#include "template_test_support.h"

using hadal::ChatTemplate;
using hadal::test::Json;

namespace {

Json load(const std::string& name) {
  return Json::parse(hadal::test::read_text(hadal::test::data_path(name)));
}

}  // namespace

TEST_CASE("Jinja: every construct renders as jinja2 renders it, and fails where it fails",
          "[text]") {
  const Json goldens = load("construct_goldens.json");
  REQUIRE(goldens["cases"].size() >= 200);
  for (const Json& golden : goldens["cases"]) {
    const std::string source = golden["source"];
    CAPTURE(source);
    const std::string got = hadal::test::render(source, goldens["context"]);
    if (golden.contains("error")) {
      INFO("jinja2: " << golden["error"] << ", got: " << got);
      CHECK(got.starts_with("error: "));
    } else {
      CHECK(got == golden["output"].get<std::string>());
    }
  }
}

TEST_CASE("Jinja: the checkpoints' templates render conversations as jinja2 does", "[text]") {
  const Json goldens = load("template_goldens.json");
  REQUIRE(goldens["cases"].size() >= 250);
  for (const Json& golden : goldens["cases"]) {
    const std::string name = golden["template"];
    const size_t index = golden["context"];
    CAPTURE(name, index);
    Json context = goldens["contexts"][index];
    context.update(goldens["special"]);
    const std::string source = hadal::test::read_text(hadal::test::data_path(name + ".jinja"));
    const std::string got = hadal::test::render(source, context);
    if (golden.contains("error"))
      CHECK(got.starts_with("error: "));
    else
      CHECK(got == golden["output"].get<std::string>());
  }
}

TEST_CASE("Jinja: an error names its line and column", "[text]") {
  const auto error = [](const std::string& source) {
    return hadal::test::render(source, Json::object());
  };
  CHECK(error("ok\n  {{ 'x' | nofilter }}") ==
        "error: chat template, line 2, column 12: no filter named 'nofilter'");
  CHECK(error("a\nb\n{% if x %}{{ y.z.w }}{% else %}{{ y.z }}{% endif %}") ==
        "error: chat template, line 3, column 36: 'y' is undefined");
  CHECK(error("{% call x() %}{% endcall %}") ==
        "error: chat template, line 1, column 4: the tag 'call' is not supported");
  CHECK(error("{% for a in b recursive %}{% endfor %}") ==
        "error: chat template, line 1, column 15: recursive loops are not supported");
  CHECK(error("{{ 'a'.format(1) }}") ==
        "error: chat template, line 1, column 7: the string method 'format' is not supported");
  CHECK(error("{{ raise_exception('Roles must alternate') }}") == "error: Roles must alternate");
}
