// A chat template and a message: the interpreter keeps its limits, and the bytes it marks as
// request data lie inside the prompt, in order.
#include <memory>
#include <string>

#include <hadal/text/chat_template.h>

#include "fuzz_input.h"

namespace {

using hadal::TemplateValue;

TemplateValue text_value(std::string text, bool is_content) {
  TemplateValue value;
  value.value = std::move(text);
  value.is_content = is_content;
  return value;
}

TemplateValue object_value(TemplateValue::Object object) {
  TemplateValue value;
  value.value = std::make_shared<const TemplateValue::Object>(std::move(object));
  return value;
}

TemplateValue list_value(TemplateValue::List list) {
  TemplateValue value;
  value.value = std::make_shared<const TemplateValue::List>(std::move(list));
  return value;
}

TemplateValue bool_value(bool flag) {
  TemplateValue value;
  value.value = flag;
  return value;
}

TemplateValue make_context(std::string_view content) {
  const TemplateValue function = object_value(
      {{"name", text_value("add", true)}, {"arguments", text_value("{\"a\": 1}", true)}});
  const TemplateValue call = object_value({{"type", text_value("function", true)},
                                           {"id", text_value("c0", true)},
                                           {"function", function}});
  TemplateValue::List messages;
  messages.push_back(object_value(
      {{"role", text_value("system", false)}, {"content", text_value("Be brief.", true)}}));
  messages.push_back(object_value(
      {{"role", text_value("user", false)}, {"content", text_value(std::string(content), true)}}));
  messages.push_back(object_value({{"role", text_value("assistant", false)},
                                   {"content", TemplateValue{}},
                                   {"tool_calls", list_value({call})}}));
  messages.push_back(object_value(
      {{"role", text_value("tool", false)}, {"content", text_value(std::string(content), true)}}));
  return object_value({{"messages", list_value(std::move(messages))},
                       {"tools", list_value({object_value({{"function", function}})})},
                       {"add_generation_prompt", bool_value(true)},
                       {"bos_token", text_value("<s>", false)},
                       {"eos_token", text_value("</s>", false)}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto [source, content] = fuzz::two_parts(fuzz::as_text(data, size));
  const hadal::TemplateLimits limits{
      .depth_max = 32, .steps_max = 100'000, .output_bytes_max = 1 << 20};
  const auto parsed = hadal::ChatTemplate::parse(source, limits);
  if (!parsed) {
    fuzz::expect(!parsed.error().message.empty(), "an error says something");
    return 0;
  }
  const auto prompt = parsed.value().render(make_context(content));
  if (!prompt) {
    return 0;
  }
  const auto length = static_cast<int64_t>(prompt.value().text.size());
  fuzz::expect(length <= limits.output_bytes_max, "the output limit holds");
  int64_t end = 0;
  for (const hadal::ByteRange& range : prompt.value().content) {
    fuzz::expect(range.begin >= end && range.end >= range.begin, "ranges are sorted and disjoint");
    end = range.end;
  }
  fuzz::expect(end <= length, "ranges lie inside the prompt");
  return 0;
}
