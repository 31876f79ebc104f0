// One rank of a shrunken R1, alone: every op of its steps is seen as often as the layers say, with
// the bytes and operations of its shapes.
#include <hadal/runtime/step_bench.h>

#include "catch.h"
#include "small_model.h"

namespace hadal {
namespace {

const OpTotal& op_of(const StepReport& report, const std::string& name) {
  for (const OpTotal& op : report.ops) {
    if (op.name == name) {
      return op;
    }
  }
  FAIL("no op " << name);
  return report.ops.front();
}

TEST_CASE("step bench: a rank of two, alone", "[runtime]") {
  const ModelDir model;
  StepBenchConfig config;
  config.runner.model_dir = model.path;
  config.runner.load_format = LoadFormat::dummy;
  config.runner.tp = 2;
  config.runner.num_threads = 1;
  config.rank = 1;
  config.batches = {3};
  config.context = 100;
  config.prefills = {70};
  config.seconds = 0.01;
  auto bench = StepBench::create(config);
  REQUIRE(bench);

  const auto decode = bench.value()->decode(3);
  REQUIRE(decode);
  CHECK(decode.value().num_steps >= 10);
  CHECK(decode.value().p10_s <= decode.value().median_s);
  CHECK(decode.value().median_s <= decode.value().p90_s);
  CHECK(decode.value().overlapped_s > 0);
  CHECK_FALSE(decode.value().has_graph);  // the CPU backend has none
  CHECK(bench.value()->capture_report().batches.empty());
  CHECK(decode.value().kv_pages_wanted == 6);
  CHECK(decode.value().mean_experts >= 4);
  CHECK(decode.value().mean_experts <= 12);
  CHECK(op_of(decode.value(), "add_norm").calls == 7);
  CHECK(op_of(decode.value(), "attention_generated").calls == 3);
  CHECK(op_of(decode.value(), "lm_head 500x256").calls == 1);
  CHECK(op_of(decode.value(), "lm_head 500x256").flops == 2.0 * 3 * 500 * 256);
  CHECK(op_of(decode.value(), "moe_down 256x128").calls == 2);
  // 12 of 3 tokens' choices and the shared expert, three times.
  CHECK(op_of(decode.value(), "moe_down 256x128").flops == 2.0 * 2 * (12 + 3) * 256 * 128);
  const OpTotal& attention = op_of(decode.value(), "attention_generated");
  CHECK(attention.flops == 3 * 2.0 * 3 * (2 * 100 * (576 + 512) + 2 * 256 * 512));

  const auto prefill = bench.value()->prefill(70);
  REQUIRE(prefill);
  CHECK(op_of(prefill.value(), "attention_prompt").calls == 3);
  for (const OpTotal& op : prefill.value().ops) {
    INFO(op.name);
    CHECK(op.seconds > 0);
    CHECK(op.bytes > 0);
  }
}

TEST_CASE("step bench: a short prompt after a long prefix takes the cheaper form", "[runtime]") {
  const ModelDir model;
  const auto attention_of = [&](bool is_deterministic) {
    StepBenchConfig config;
    config.runner.model_dir = model.path;
    config.runner.load_format = LoadFormat::dummy;
    config.runner.num_threads = 1;
    config.runner.is_deterministic = is_deterministic;
    config.prefills = {5};
    config.prefix = 300;
    config.seconds = 0.01;
    auto bench = StepBench::create(config);
    REQUIRE(bench);
    const auto prefill = bench.value()->prefill(5);
    REQUIRE(prefill);
    std::string names;
    for (const OpTotal& op : prefill.value().ops)
      names += op.name.find("attention") == 0 ? op.name : "";
    return names;
  };
  CHECK(attention_of(false) == "attention_generated");
  CHECK(attention_of(true) == "attention_prompt");
}

TEST_CASE("step bench: FP8 pages are filled, read, and counted as 656 bytes a token", "[runtime]") {
  const ModelDir model;
  const auto attention_bytes = [&](KvDtype kv_dtype) {
    StepBenchConfig config;
    config.runner.model_dir = model.path;
    config.runner.load_format = LoadFormat::dummy;
    config.runner.num_threads = 1;
    config.runner.kv_dtype = kv_dtype;
    config.batches = {2};
    config.context = 100;
    config.seconds = 0.01;
    auto bench = StepBench::create(config);
    REQUIRE(bench);
    const auto decode = bench.value()->decode(2);
    REQUIRE(decode);  // data_loss if a page held anything but numbers
    return op_of(decode.value(), "attention_generated").bytes;
  };
  CHECK(attention_bytes(KvDtype::bf16) - attention_bytes(KvDtype::fp8_e4m3) ==
        3.0 * 2 * 100 * (1152 - 656));
}

TEST_CASE("step bench: what cannot be measured is refused by name", "[runtime]") {
  const ModelDir model;
  StepBenchConfig config;
  config.runner.model_dir = model.path;
  config.runner.load_format = LoadFormat::dummy;
  config.batches = {1};
  config.rank = 1;
  auto outside = StepBench::create(config);
  REQUIRE_FALSE(outside);
  CHECK(outside.error().message.find("--as-rank") != std::string::npos);
  config.rank = 0;
  config.context = 5000;
  CHECK_FALSE(StepBench::create(config));
}

}  // namespace
}  // namespace hadal
