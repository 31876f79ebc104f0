// What a token costs by arithmetic, for dividing measured speed by the machine's ceilings.
#pragma once

#include <cstdint>

#include <hadal/model/config.h>

namespace hadal {

/// Bytes of weights and KV that one decode step of `batch` sequences at `context` tokens has to
/// read, each counted once. Routed experts: the expected number of different ones that `batch`
/// tokens choose. `kv_type` is that of the cache.
double decode_step_bytes(const DeepseekConfig& config,
                         int32_t batch,
                         double context,
                         DType kv_type);

/// Multiply-adds, times two, of `num_tokens` prompt tokens in one sequence: linear layers that the
/// tokens choose, and causal attention in its non-absorbed form. Embedding and head are left out:
/// only the last position needs logits.
double prefill_flops(const DeepseekConfig& config, int64_t num_tokens);

}  // namespace hadal
