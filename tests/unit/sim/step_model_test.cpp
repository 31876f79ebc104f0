// Step times: curves, tables of measurements, and R1's roofline at the points it is made of.
#include <hadal/sim/step_model.h>

#include "catch.h"

namespace hadal::sim {
namespace {

std::string error_of(std::string_view table) {
  const auto model = read_step_table(table, "t");
  return model ? "" : model.error().message;
}

TEST_CASE("StepModel: a table gives back the steps it was measured at", "[sim]") {
  // 2 ms + 0.5 ms a row + 1 us a context token; 3 ms + 0.01 ms a token + 1 ns a pair.
  const auto decode_ms = [](double batch, double context) {
    return 2.0 + 0.5 * batch + 1e-3 * batch * context;
  };
  const auto prefill_ms = [](double tokens, double prefix) {
    return 3.0 + 0.01 * tokens +
           1e-6 * ((tokens + kPairsOfPrefixToken) * prefix + tokens * (tokens + 1) / 2);
  };
  std::string table = R"({"name": "cpu", "decode": [)";
  for (const int batch : {1, 4, 16}) {
    for (const int context : {100, 1000})
      table += std::string(table.back() == '[' ? "" : ",") +
               "{\"batch\": " + std::to_string(batch) +
               ", \"context\": " + std::to_string(context) +
               ", \"step_ms\": " + std::to_string(decode_ms(batch, context)) + "}";
  }
  table += R"(], "prefill": [)";
  for (const int tokens : {64, 512}) {
    for (const int prefix : {0, 2000})
      table += std::string(table.back() == '[' ? "" : ",") +
               "{\"tokens\": " + std::to_string(tokens) +
               ", \"prefix\": " + std::to_string(prefix) +
               ", \"step_ms\": " + std::to_string(prefill_ms(tokens, prefix)) + "}";
  }
  const auto model = read_step_table(table + "]}", "t");
  REQUIRE(model);
  CHECK(model.value().seconds({8, 8 * 500, 0, 0}) * 1e3 == Approx(decode_ms(8, 500)).epsilon(1e-3));
  const int64_t pairs = (256 + kPairsOfPrefixToken) * 700 + 256 * 257 / 2;
  CHECK(model.value().seconds({0, 0, 256, pairs}) * 1e3 ==
        Approx(prefill_ms(256, 700)).epsilon(1e-3));
  // Both in one step: the fixed part of prefill is not paid twice.
  CHECK(model.value().seconds({8, 8 * 500, 256, pairs}) * 1e3 ==
        Approx(decode_ms(8, 500) + prefill_ms(256, 700) - 3.0).epsilon(1e-3));
}

TEST_CASE("StepModel: small chunks of a table are absorbed, and cost as decode does", "[sim]") {
  std::string table = R"({"absorbed_chunk_tokens": 100, "decode": [)";
  for (const int context : {100, 1000}) {
    for (const int batch : {1, 4})
      table += std::string(table.back() == '[' ? "" : ",") +
               "{\"batch\": " + std::to_string(batch) +
               ", \"context\": " + std::to_string(context) +
               ", \"step_ms\": " + std::to_string(2.0 + 1e-3 * batch * context) + "}";
  }
  table += R"(], "prefill": [)";
  for (const int tokens : {16, 512}) {
    for (const int prefix : {0, 2000}) {
      const double own = 0.5 * tokens * (tokens + 1);
      const bool is_absorbed = prefix > 0 && tokens < 100;
      const double ms = is_absorbed ? 1e-3 * (tokens * prefix + own)
                                    : 1e-6 * ((tokens + kPairsOfPrefixToken) * prefix + own);
      table += std::string(table.back() == '[' ? "" : ",") +
               "{\"tokens\": " + std::to_string(tokens) +
               ", \"prefix\": " + std::to_string(prefix) +
               ", \"step_ms\": " + std::to_string(3.0 + 0.01 * tokens + ms) + "}";
    }
  }
  const auto model = read_step_table(table + "]}", "t");
  REQUIRE(model);
  CHECK(model.value().absorbed_chunk_tokens == 100);
  BatchPlan plan;
  plan.rows.push_back({0, 1500, 32, AttentionForm::generated, 1, true});
  CHECK(model.value().seconds(StepShape::of(plan)) * 1e3 ==
        Approx(3.0 + 0.01 * 32 + 1e-3 * (32 * 1500 + 32 * 33 / 2)).epsilon(1e-3));
  plan.rows.front() = {0, 1500, 200, AttentionForm::prompt, 1, true};
  CHECK(model.value().seconds(StepShape::of(plan)) * 1e3 ==
        Approx(3.0 + 0.01 * 200 + 1e-6 * ((200 + kPairsOfPrefixToken) * 1500 + 200 * 201 / 2))
            .epsilon(1e-3));
}

TEST_CASE("StepModel: a wrong table is named", "[sim]") {
  CHECK(error_of("7") == "t: expected one JSON object");
  CHECK(error_of(R"({"mixing": "min"})") == R"(t: mixing: expected "add" or "max", got "min")");
  CHECK(error_of(R"({"absorbed_chunk_tokens": -1})") ==
        "t: absorbed_chunk_tokens: expected 0 to 65536, got -1");
  CHECK(error_of(R"({"decode": []})") == "t: decode: expected an array of 1 to 10000 measurements");
  CHECK(error_of(R"({"decode": [{"batch": 0, "context": 1, "step_ms": 1}]})")
            .find("expected batch >= 1") != std::string::npos);
  CHECK(error_of(R"({"decode": [{"batch": 1, "context": 1, "step_ms": 1}],
                     "prefill": [{"tokens": 1, "prefix": 0, "step_ms": 1}]})") ==
        "t: decode: expected two batches, and two contexts of one batch");
}

TEST_CASE("StepModel: R1's roofline is the guide's at its points", "[sim]") {
  const StepModel model = r1_group_model();
  const auto decode_ms = [&](int32_t batch, int64_t context) {
    return model.seconds({batch, batch * context, 0, 0}) * 1e3;
  };
  CHECK(decode_ms(1, 4096) == Approx(4.1));
  CHECK(decode_ms(64, 4096) == Approx(20.3));
  CHECK(decode_ms(256, 4096) == Approx(40.6));
  CHECK(decode_ms(256, 8192) == Approx(40.6 + 18.05).epsilon(0.01));
  const StepShape chunk{0, 0, 4096, int64_t{4096} * 4097 / 2};
  CHECK(4096.0 / model.seconds(chunk) == Approx(82'000.0));
  // A chunk next to decodes costs more than either alone and less than both.
  const StepShape mixed{128, 128 * 4096, 4096, int64_t{4096} * 4097 / 2};
  CHECK(model.seconds(mixed) > model.seconds(chunk));
  CHECK(model.seconds(mixed) < model.seconds(chunk) + decode_ms(128, 4096) * 1e-3);
}

TEST_CASE("StepModel: the shape of a plan", "[sim]") {
  BatchPlan plan;
  plan.rows.push_back({0, 99, 1, AttentionForm::generated, 1, true});
  plan.rows.push_back({1, 10, 4, AttentionForm::prompt, 0, false});
  plan.rows.push_back({2, 5, 1, AttentionForm::prompt, 1, true});
  plan.rows.push_back({3, 20, 3, AttentionForm::generated, 0, false});
  const StepShape shape = StepShape::of(plan);
  CHECK(shape.decode_rows == 1);
  CHECK(shape.decode_context_tokens == 100);
  CHECK(shape.prefill_tokens == 8);
  CHECK(shape.prefill_pairs == 4 * 10 + 10 + 1 * 5 + 1 + 15 * kPairsOfPrefixToken);
  CHECK(shape.absorbed_pairs == 21 + 22 + 23);
}

}  // namespace
}  // namespace hadal::sim
