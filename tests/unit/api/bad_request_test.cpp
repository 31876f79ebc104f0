// The table of bad values: each is refused with the right status and the field that is at fault, or
// accepted on purpose.
#include <string>
#include <vector>

#include "catch.h"
#include "job_fixture.h"

using namespace hadal;
using namespace hadal::api;
using namespace hadal_test;

namespace {

struct Case {
  std::string extra;  ///< members put beside a valid message
  std::string param;  ///< "" = accepted
  std::string code = {};
};

std::string repeat_list(std::string_view item, size_t count) {
  std::string out = "[";
  for (size_t i = 0; i < count; ++i) {
    out += (i > 0 ? "," : "") + std::string(item);
  }
  return out + "]";
}

std::vector<Case> boundary_cases(const std::string& name, std::vector<std::string> bad) {
  for (const char* always : {"\"5\"", "[]", "{}", "true", "9223372036854775808"}) {
    bad.emplace_back(always);
  }
  std::vector<Case> cases;
  for (const std::string& value : bad) {
    cases.push_back({"\"" + name + "\":" + value, name});
  }
  cases.push_back({"\"" + name + "\":null", ""});
  return cases;
}

std::vector<Case> sampling_cases() {
  std::vector<Case> cases;
  const auto add = [&](const std::string& name, std::vector<std::string> bad) {
    for (Case& entry : boundary_cases(name, std::move(bad))) {
      const bool is_huge = entry.extra.find("9223372036854775808") != std::string::npos;
      if (!is_huge || name != "temperature") {
        cases.push_back(std::move(entry));
      }
    }
  };
  add("temperature", {"-1", "-0.001"});
  add("top_p", {"0", "-0.1", "1.1"});
  add("min_p", {"2", "-0.1"});
  add("top_k", {"-2", "2147483648", "1.5"});
  add("max_tokens", {"0", "-1", "2147483648", "4294967297", "1.5"});
  add("max_completion_tokens", {"0", "-1", "2147483648"});
  add("min_tokens", {"-1", "2147483648"});
  add("presence_penalty", {"2.1", "-2.1"});
  add("frequency_penalty", {"2.1", "-2.1"});
  add("repetition_penalty", {"0", "-1", "2.1", "1000000000"});
  add("seed", {"1.5", "18446744073709551616"});
  add("n", {"0", "-1", "1.5", "129", "1000000"});
  add("top_logprobs", {"-1", "21", "2147483648"});
  add("priority", {"-1001", "1001"});
  return cases;
}

std::vector<Case> other_cases() {
  return {
      {"\"temperature\":1e-30", ""},
      {"\"temperature\":1e308", ""},
      {"\"temperature\":3", ""},
      {"\"top_k\":0", ""},
      {"\"top_k\":-1", ""},
      {"\"top_k\":100000", ""},
      {"\"max_tokens\":5,\"max_completion_tokens\":7", ""},
      {"\"max_tokens\":5,\"min_tokens\":6", "min_tokens"},
      {"\"max_tokens\":4097", "messages", "context_length_exceeded"},
      {"\"n\":2,\"temperature\":0", ""},
      {"\"stop\":[]", ""},
      {"\"stop\":\"x\"", ""},
      {"\"stop\":\"\"", "stop"},
      {"\"stop\":[\"\"]", "stop"},
      {"\"stop\":5", "stop"},
      {"\"stop\":[5]", "stop"},
      {"\"stop\":" + repeat_list("\"x\"", 64), ""},
      {"\"stop\":" + repeat_list("\"x\"", 65), "stop"},
      {"\"stop\":\"" + std::string(1 << 20, 'x') + "\"", "stop"},
      {"\"stop_token_ids\":[1,2]", ""},
      {"\"stop_token_ids\":[267]", "stop_token_ids"},
      {"\"stop_token_ids\":[-1]", "stop_token_ids"},
      {"\"stop_token_ids\":" + repeat_list("1", 10000), "stop_token_ids"},
      {"\"logit_bias\":{\"1\":100,\"266\":-100}", ""},
      {"\"logit_bias\":{\"267\":1}", "logit_bias"},
      {"\"logit_bias\":{\"2147483648\":1}", "logit_bias"},
      {"\"logit_bias\":{\"-1\":1}", "logit_bias"},
      {"\"logit_bias\":{\"1e3\":1}", "logit_bias"},
      {"\"logit_bias\":{\"01\":1}", "logit_bias"},
      {"\"logit_bias\":{\" 1\":1}", "logit_bias"},
      {"\"logit_bias\":{\"abc\":1}", "logit_bias"},
      {"\"logit_bias\":{\"1\":101}", "logit_bias"},
      {"\"logit_bias\":{\"1\":\"x\"}", "logit_bias"},
      {"\"logit_bias\":[]", "logit_bias"},
      {"\"logprobs\":true", ""},
      {"\"logprobs\":true,\"top_logprobs\":20", ""},
      {"\"top_logprobs\":3", "top_logprobs"},
      {"\"logprobs\":1", "logprobs"},
      {"\"stream\":\"yes\"", "stream"},
      {"\"stream\":1", "stream"},
      {"\"stream_options\":5", ""},
      {"\"stream\":true,\"stream_options\":5", "stream_options"},
      {"\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options"},
      {"\"response_format\":{\"type\":\"text\"}", ""},
      {"\"response_format\":{}", "response_format"},
      {"\"response_format\":{\"type\":\"json_object\"}", "response_format"},
      {"\"response_format\":{\"type\":\"json_schema\"}", "response_format"},
      {"\"response_format\":\"text\"", "response_format"},
      {"\"regex\":\"a+\"", "regex", "unsupported_parameter"},
      {"\"ebnf\":\"root ::= x\"", "ebnf", "unsupported_parameter"},
      {"\"guided_json\":{}", "guided_json", "unsupported_parameter"},
      {"\"regex\":null", ""},
      {"\"best_of\":2", "best_of", "unsupported_parameter"},
      {"\"use_beam_search\":true", "use_beam_search", "unsupported_parameter"},
      {"\"prompt_embeds\":\"x\"", "prompt_embeds", "unsupported_parameter"},
      {"\"chat_template\":\"{{x}}\"", "chat_template", "unsupported_parameter"},
      {"\"functions\":[{}],\"suffix\":\"x\",\"function_call\":5", ""},
      {"\"n_discard\":-1,\"foo\":1,\"user\":{\"name\":\"x\"},\"metadata\":7", ""},
      {"\"cache_salt\":\"\"", "cache_salt"},
      {"\"cache_salt\":5", "cache_salt"},
      {"\"cache_salt\":\"a\"", ""},
      {"\"model\":5", "model"},
      {"\"model\":[]", "model"},
      {"\"model\":\"../../etc/passwd\"", ""},
      {"\"model\":\"\"", ""},
      {"\"model\":\"" + std::string(1 << 20, 'm') + "\"", "model"},
      {"\"prompt\":\"x\"", "prompt"},
      {"\"reasoning_effort\":\"high\"", ""},
      {"\"reasoning_effort\":\"extreme\"", "reasoning_effort"},
      {"\"modalities\":[\"text\"]", ""},
      {"\"modalities\":[\"audio\"]", "modalities", "unsupported_parameter"},
      {"\"chat_template_kwargs\":{\"thinking\":false}", ""},
      {"\"chat_template_kwargs\":{\"messages\":[]}", "chat_template_kwargs"},
      {"\"chat_template_kwargs\":5", "chat_template_kwargs"},
      {"\"separate_reasoning\":1", "separate_reasoning"},
      {"\"tools\":{}", "tools"},
      {"\"tools\":[null]", "tools"},
      {"\"tools\":[]", ""},
      {"\"tools\":[{\"function\":{\"name\":\"f\"}},{\"function\":{\"name\":\"f\"}}]", "tools"},
      {"\"tools\":[{\"function\":{\"name\":\"f\"}}]", ""},
      {"\"tool_choice\":\"auto\"", ""},
      {"\"tool_choice\":\"required\"", "tool_choice", "unsupported_parameter"},
      {"\"tool_choice\":{\"function\":{\"name\":\"f\"}}", "tool_choice", "unsupported_parameter"},
      {"\"tool_choice\":\"sometimes\"", "tool_choice"},
      {"\"continue_final_message\":true", "continue_final_message"}};
}

void check_chat(JobFixture& fixture, const std::string& body, const Case& expected) {
  INFO(body.substr(0, 120));
  const auto job = make_chat_job(fixture.context(), body);
  CHECK(static_cast<bool>(job) == expected.param.empty());
  if (!job) {
    CHECK(job.error().status == 400);
    CHECK(job.error().param == expected.param);
    CHECK(job.error().message.size() < 300);
    if (!expected.code.empty()) {
      CHECK(job.error().code == expected.code);
    }
  }
}

}  // namespace

TEST_CASE("chat requests: every bad value is a 400 that names its field", "[api]") {
  JobFixture fixture;
  std::vector<Case> cases = sampling_cases();
  for (Case& entry : other_cases()) {
    cases.push_back(std::move(entry));
  }
  for (const Case& entry : cases) {
    check_chat(
        fixture, R"({"messages":[{"role":"user","content":"hi"}],)" + entry.extra + "}", entry);
  }
}

TEST_CASE("chat requests: messages", "[api]") {
  JobFixture fixture;
  const std::vector<Case> cases = {
      {"[]", "messages"},
      {"null", "messages"},
      {"{}", "messages"},
      {"\"hi\"", "messages"},
      {repeat_list("{\"role\":\"user\",\"content\":\"x\"}", 10001), "messages"},
      {"[5]", "messages[0]"},
      {"[{\"content\":\"x\"}]", "messages[0].role"},
      {"[{\"role\":\"root\",\"content\":\"x\"}]", "messages[0].role"},
      {"[{\"role\":5,\"content\":\"x\"}]", "messages[0].role"},
      {"[{\"role\":\"user\"}]", "messages[0].content"},
      {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content"},
      {"[{\"role\":\"user\",\"content\":5}]", "messages[0].content"},
      {"[{\"role\":\"user\",\"content\":[]}]", "messages[0].content"},
      {"[{\"role\":\"user\",\"content\":[[]]}]", "messages[0].content[0]"},
      {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]",
       "messages[0].content[0].type",
       "unsupported_content"},
      {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0].text"},
      {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]", ""},
      {"[{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"user\",\"content\":\"\"}]", ""},
      {"[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":null,"
       "\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},"
       "{\"role\":\"tool\",\"tool_call_id\":\"a\",\"content\":\"r\"}]",
       ""},
      {"[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\"}]}]", "messages[0].tool_calls"},
      {"[{\"role\":\"assistant\",\"tool_calls\":5}]", "messages[0].tool_calls"},
      {"[{\"role\":\"assistant\",\"content\":\"only\"}]", "messages"},
      {"[{\"role\":\"user\",\"__class__\":1,\"loop\":2,\"content\":\"x\"}]", ""}};
  for (const Case& entry : cases) {
    check_chat(fixture, "{\"messages\":" + entry.extra + "}", entry);
  }
  check_chat(fixture, "{}", {"", "messages"});
}

TEST_CASE("chat requests: the context length is exact", "[api]") {
  JobFixture fixture;
  const auto with = [&](size_t bytes, const std::string& extra) {
    return R"({"messages":[{"role":"user","content":")" + std::string(bytes, 'x') + "\"}]" + extra +
           "}";
  };
  // BOS, user, assistant, think and a line break stand around the content.
  const size_t around = 5;
  const size_t context = 4096;
  const auto fits = make_chat_job(fixture.context(), with(context - around - 1, ""));
  CHECK(static_cast<bool>(fits));
  check_chat(fixture, with(context - around, ""), {"", "messages", "context_length_exceeded"});
  check_chat(fixture, with(context - around + 1, ""), {"", "messages", "context_length_exceeded"});
  check_chat(fixture, with(context - around - 10, ",\"max_tokens\":10"), {"", ""});
  check_chat(fixture,
             with(context - around - 10, ",\"max_tokens\":11"),
             {"", "messages", "context_length_exceeded"});
}

TEST_CASE("completion requests: prompts", "[api]") {
  JobFixture fixture;
  const std::vector<Case> cases = {{"{}", "prompt"},
                                   {"{\"prompt\":null}", "prompt"},
                                   {"{\"prompt\":[]}", "prompt"},
                                   {"{\"prompt\":[[]]}", "prompt"},
                                   {"{\"prompt\":{}}", "prompt"},
                                   {"{\"prompt\":5}", "prompt"},
                                   {"{\"prompt\":\"\"}", ""},  // BOS alone is a prompt
                                   {"{\"prompt\":[1,\"a\"]}", "prompt"},
                                   {"{\"prompt\":[\"a\",1]}", "prompt"},
                                   {"{\"prompt\":[[1],\"a\"]}", "prompt"},
                                   {"{\"prompt\":[[[1]]]}", "prompt"},
                                   {"{\"prompt\":[-1]}", "prompt"},
                                   {"{\"prompt\":[267]}", "prompt"},
                                   {"{\"prompt\":[2147483648]}", "prompt"},
                                   {"{\"prompt\":[4294967301]}", "prompt"},
                                   {"{\"prompt\":[1.5]}", "prompt"},
                                   {"{\"prompt\":[true]}", "prompt"},
                                   {"{\"prompt\":[266,256,257]}", ""},
                                   {"{\"prompt\":[[1,2],[3]]}", ""},
                                   {"{\"prompt\":" + repeat_list("\"a\"", 129) + "}", "prompt"},
                                   {"{\"prompt\":" + repeat_list("\"a\"", 65) + ",\"n\":2}", "n"},
                                   {"{\"prompt\":\"a\",\"messages\":[]}", "messages"},
                                   {"{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens"},
                                   {"{\"prompt\":\"a\",\"max_tokens\":0,\"echo\":true}", ""},
                                   {"{\"prompt\":\"a\",\"logprobs\":5}", ""},
                                   {"{\"prompt\":\"a\",\"logprobs\":6}", "logprobs"},
                                   {"{\"prompt\":\"a\",\"logprobs\":true}", "logprobs"},
                                   {"{\"prompt\":\"a\",\"echo\":1}", "echo"}};
  for (const Case& entry : cases) {
    INFO(entry.extra.substr(0, 100));
    const auto job = make_completion_job(fixture.context(), entry.extra);
    CHECK(static_cast<bool>(job) == entry.param.empty());
    if (!job) {
      CHECK(job.error().status == 400);
      CHECK(job.error().param == entry.param);
    }
  }
}

TEST_CASE("model names are checked only when asked for", "[api]") {
  JobFixture fixture;
  const std::string body =
      R"({"model":"/model","messages":[{"role":"user","content":"你是什么模型"}],)"
      R"("stream":false,"temperature":0.8})";
  CHECK(static_cast<bool>(make_chat_job(fixture.context(), body)));
  fixture.config.strict_model_name = true;
  const auto refused = make_chat_job(fixture.context(), body);
  REQUIRE_FALSE(static_cast<bool>(refused));
  CHECK(refused.error().status == 404);
  CHECK(refused.error().code == "model_not_found");
  CHECK(static_cast<bool>(make_chat_job(
      fixture.context(), R"({"model":"tiny","messages":[{"role":"user","content":"x"}]})")));
}
