// How long the device works on a step, from measurements or from the roofline of R1.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/plan/batch_plan.h>

namespace hadal::sim {

/// What of a step costs time.
struct StepShape {
  int32_t decode_rows = 0;
  int64_t decode_context_tokens = 0;  ///< KV that decode rows read, summed over rows
  int32_t prefill_tokens = 0;
  /// (token, earlier token) pairs of prefill attention, non-absorbed, and kPairsOfPrefixToken for
  /// each token before such a row.
  int64_t prefill_pairs = 0;
  int64_t absorbed_pairs = 0;  ///< of rows of several tokens in the absorbed form

  static StepShape of(const BatchPlan& plan);
};

/// Piecewise linear, and linear beyond the last two points.
struct Curve {
  struct Point {
    double x = 0.0;
    double y = 0.0;
  };

  std::vector<Point> points;  ///< x grows

  double at(double x) const;
};

/// seconds = weights + (decode_context_tokens + absorbed_pairs) * context_s
///         + prefill_pairs * pair_s, where weights is
///   add: decode(rows) + prefill(tokens) - prefill(0)    work adds up (a CPU)
///   max: max(decode(rows + tokens), prefill(tokens))    weights are read once for both (a GPU)
struct StepModel {
  enum class Mixing : uint8_t { add, max };

  std::string name;
  Mixing mixing = Mixing::add;
  Curve decode;   ///< seconds by rows, without attention to the context
  Curve prefill;  ///< seconds by tokens, without attention
  double context_s = 0.0;
  double pair_s = 0.0;
  int32_t absorbed_chunk_tokens = 0;  ///< of the scheduler: see cheaper_form()

  double seconds(const StepShape& shape) const;
};

/// DeepSeek-R1 in FP8 on 16 H200 of two nodes, tensor parallel, BF16 KV. Decode: kernels at 65-85 %
/// of HBM bandwidth with hierarchical all-reduces, 4.1 ms at batch 1 and 40.6 ms at 256 with 4,096
/// tokens of context each, of which attention is 61 layers x 1,152 bytes a token at 85 % of 4.8
/// TB/s. Prefill: 82,000 tokens/s in chunks of 4,096, attention at 550 TFLOP/s.
StepModel r1_group_model();

/// {"name", "mixing": "add" | "max", "decode": [{"batch", "context", "step_ms"}], "prefill":
/// [{"tokens", "prefix", "step_ms"}]}: measured steps of one kind alone. At least two batches, two
/// contexts of one batch, two sizes of prefill and two prefixes of one size.
/// "absorbed_chunk_tokens" (0 when absent) is what the server that was measured has: prefill in the
/// absorbed form costs as decode does for each pair.
Result<StepModel> read_step_table(std::string_view json, std::string_view origin);

}  // namespace hadal::sim
