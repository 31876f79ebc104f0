// The shards of all ranks together are the checkpoint, once where it is cut and everywhere where it
// is not.
#include "weight_map.h"

#include <map>

#include "catch.h"
#include "configs.h"

namespace hadal {
namespace {

DeepseekConfig parse(const char* json) {
  auto config = parse_deepseek_config(json);
  REQUIRE(config);
  return std::move(config).value();
}

/// Elements of every tensor that the ranks read, and its size.
void check_cover(const DeepseekConfig& config, int32_t tp, int32_t ep) {
  INFO("tp " << tp << " ep " << ep);
  std::map<std::string, int64_t> elements;
  std::map<std::string, int64_t> sizes;
  std::map<std::string, int64_t> readers;
  for (int32_t rank = 0; rank < tp; ++rank) {
    const auto layout = make_parallel_layout(tp, ep, rank);
    REQUIRE(layout);
    REQUIRE(check_layout(config, layout.value()));
    WeightMap(config, layout.value()).for_each(false, [&](const TensorPart& part) {
      const WeightSlice all = whole(part.values.shape);
      elements[part.values.name] += part.slice.num_rows * part.slice.num_cols;
      sizes[part.values.name] = all.num_rows * all.num_cols;
      readers[part.values.name] +=
          part.slice.num_rows == all.num_rows && part.slice.num_cols == all.num_cols ? 1 : 0;
    });
  }
  for (const auto& [name, size] : sizes) {
    INFO(name);
    const bool is_replicated = readers[name] == tp && tp > 1;
    CHECK(elements[name] == (is_replicated ? size * tp : size));
  }
}

TEST_CASE("weight map: ranks cover every tensor", "[model]") {
  DeepseekConfig r1 = parse(kR1Config);
  r1.num_hidden_layers = 4;
  DeepseekConfig lite = parse(kV2LiteConfig);
  lite.num_hidden_layers = 2;
  check_cover(r1, 1, 1);
  check_cover(r1, 16, 1);
  check_cover(r1, 16, 4);
  check_cover(r1, 8, 8);
  check_cover(lite, 8, 2);
}

TEST_CASE("weight map: R1's bytes per rank are the published ones", "[model]") {
  const DeepseekConfig r1 = parse(kR1Config);
  const auto bytes = [&](int32_t tp, WeightGroup group) {
    int64_t sum = 0;
    WeightMap(r1, make_parallel_layout(tp, 1, 0).value())
        .for_each(false, [&](const TensorPart& part) {
          sum += part.group == group ? part.size_bytes() : 0;
        });
    return static_cast<double>(sum) / 1e9;
  };
  // Weights of one rank in GB, FP8 scales (0.02 %) included.
  CHECK(bytes(16, WeightGroup::attention) == Approx(1.579).epsilon(0.002));
  CHECK(bytes(8, WeightGroup::attention) == Approx(2.235).epsilon(0.002));
  CHECK(bytes(16, WeightGroup::dense_mlp) == Approx(0.0743).epsilon(0.002));
  CHECK(bytes(16, WeightGroup::embedding_and_head) == Approx(0.2316).epsilon(0.002));
  CHECK(bytes(16, WeightGroup::routed_experts) == Approx(58 * 0.7046).epsilon(0.002));
}

TEST_CASE("weight map: FP8 slices name the scale blocks they touch", "[model]") {
  const DeepseekConfig r1 = parse(kR1Config);
  const WeightMap map(r1, make_parallel_layout(64, 1, 3).value());
  const MlpParts expert = map.layer(3).experts.at(0);  // 2048 / 64 = 32 rows: a quarter of a block
  CHECK(expert.gate.slice.row_begin == 96);
  CHECK(expert.gate.scale_slice().row_begin == 0);
  CHECK(expert.gate.scale_slice().num_rows == 1);
  CHECK(expert.gate.scale_slice().num_cols == 56);
  CHECK(expert.down.scale_slice().num_cols == 1);
  const TensorPart q = map.layer(0).attention.q;  // 2 heads of 192 rows from row 1152
  CHECK(q.slice.row_begin == 1152);
  CHECK(q.scale_slice().row_begin == 9);
  CHECK(q.scale_slice().num_rows == 3);
}

}  // namespace
}  // namespace hadal
