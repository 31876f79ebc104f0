// Which graphs are captured and which plans they serve.
#include "graph_shapes.h"

#include "catch.h"
#include "decode_row.h"

namespace hadal {
namespace {

using Batches = std::vector<int32_t>;

BatchPlan decodes(std::initializer_list<int32_t> lengths) {
  BatchPlan plan;
  for (const int32_t length : lengths) {
    add_decode(plan, static_cast<SlotId>(plan.rows.size()), length - 1);
  }
  return plan;
}

bool is_shape(const std::optional<GraphShape>& found, int32_t rows, int32_t length) {
  return found && found->rows == rows && found->length == length;
}

TEST_CASE("graphs: batches grow sparser and end with the largest", "[runtime]") {
  CHECK(graph_batches({}, 1) == Batches{1});
  CHECK(graph_batches({}, 3) == Batches{1, 2, 3});
  CHECK(graph_batches({}, 40) == Batches{1, 2, 4, 8, 16, 24, 32, 40});
  const Batches all = graph_batches({}, 4096);
  CHECK(all == Batches{1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256});
  CHECK(graph_batches({.max_batch = 20}, 64) == Batches{1, 2, 4, 8, 16, 20});
  CHECK(graph_batches({.is_enabled = false}, 64).empty());
}

TEST_CASE("graphs: batches that were asked for, but none that cannot run", "[runtime]") {
  CHECK(graph_batches({.batches = {8, 1, 8, 70}}, 64) == Batches{1, 8});
  CHECK(graph_batches({.max_batch = 4, .batches = {8, 2}}, 64) == Batches{2});
  CHECK(graph_batches({.batches = {70}}, 64).empty());
}

TEST_CASE("graphs: short sequences have graphs of their own", "[runtime]") {
  CHECK(graph_lengths(1000) == Batches{1000});
  CHECK(graph_lengths(4096) == Batches{4096});
  CHECK(graph_lengths(163840) == Batches{4096, 163840});
}

TEST_CASE("graphs: a plan of decodes gets the smallest shape that holds it", "[runtime]") {
  const GraphShapes shapes({1, 4, 8}, {4096, 8192}, true);
  CHECK(is_shape(shapes.find(decodes({1})), 1, 4096));
  CHECK(is_shape(shapes.find(decodes({4096, 7})), 4, 4096));
  CHECK(is_shape(shapes.find(decodes({7, 4097, 7, 7, 7})), 8, 8192));
  CHECK_FALSE(shapes.find(decodes({1, 1, 1, 1, 1, 1, 1, 1, 1})));
  CHECK_FALSE(shapes.find(decodes({8193})));
  CHECK_FALSE(shapes.find({}));
  CHECK_FALSE(GraphShapes{}.find(decodes({1})));

  const GraphShapes exact({1, 4}, {4096}, false);
  CHECK(is_shape(exact.find(decodes({1, 2, 3, 4})), 4, 4096));
  CHECK_FALSE(exact.find(decodes({1, 2, 3})));
}

TEST_CASE("graphs: a plan with anything but decodes runs op by op", "[runtime]") {
  const GraphShapes shapes({8}, {4096}, true);
  BatchPlan prompt = decodes({5, 6});
  prompt.rows[1].form = AttentionForm::prompt;
  CHECK_FALSE(shapes.find(prompt));
  BatchPlan drafts = decodes({5, 6});
  drafts.rows[0].num_tokens = 2;
  CHECK_FALSE(shapes.find(drafts));
}

}  // namespace
}  // namespace hadal
