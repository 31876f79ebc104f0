// The router, and the two products over chosen experts.
//
// Tokens are grouped by expert, so an expert's weights are converted once for all its tokens. The
// weighted sum of a token runs over its slots in slot order, whatever the grouping.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu_ops.h"
#include "row_io.h"

namespace hadal::cpu {

namespace {

constexpr int64_t kMoeColumns = 64;       ///< columns of a task
constexpr int64_t kMoeBlockTokens = 256;  ///< tokens of a task of moe_down

/// NaN is the lowest score, below -inf.
bool is_better(float a, int32_t a_id, float b, int32_t b_id) {
  if (std::isnan(a) || std::isnan(b)) {
    return std::isnan(a) == std::isnan(b) ? a_id < b_id : std::isnan(b);
  }
  return a > b || (a == b && a_id < b_id);
}

/// Turns logits into the router's scores, in place.
void score(RouterMethod method, float* logits, int64_t count) {
  if (method == RouterMethod::noaux_tc) {
    for (int64_t i = 0; i < count; ++i) {
      logits[i] = 1.0F / (1.0F + std::exp(-logits[i]));
    }
    return;
  }
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    max = std::max(max, logits[i]);
  }
  float total = 0.0F;
  for (int64_t i = 0; i < count; ++i) {
    logits[i] = std::exp(logits[i] - max);
    total += logits[i];
  }
  for (int64_t i = 0; i < count; ++i) {
    logits[i] /= total;
  }
}

/// The `count` best of `scores`, best first; entries with allowed[i] == 0 cannot be chosen.
void choose(const float* scores,
            const uint8_t* allowed,
            int32_t size,
            int32_t count,
            std::vector<uint8_t>& taken,
            int32_t* out) {
  taken.assign(static_cast<size_t>(size), 0);
  for (int32_t k = 0; k < count; ++k) {
    int32_t best = -1;
    for (int32_t i = 0; i < size; ++i) {
      if (taken[static_cast<size_t>(i)] == 0 && (allowed == nullptr || allowed[i] != 0) &&
          (best < 0 || is_better(scores[i], i, scores[best], best))) {
        best = i;
      }
    }
    HADAL_CHECK(best >= 0, "router: fewer eligible experts than top_k");
    taken[static_cast<size_t>(best)] = 1;
    out[k] = best;
  }
}

struct RouterScratch {
  std::vector<float> choice;
  std::vector<float> groups;
  std::vector<uint8_t> allowed;
  std::vector<uint8_t> taken;
  std::vector<int32_t> chosen_groups;
};

/// A group's score: its best expert, or for noaux_tc the sum of its two best.
float group_score(RouterMethod method, const float* choice, int32_t size) {
  float first = -std::numeric_limits<float>::infinity();
  float second = first;
  for (int32_t i = 0; i < size; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return method == RouterMethod::noaux_tc && size > 1 ? first + second : first;
}

/// Chooses for one token; `scores` are its router scores.
void route(const RouterArgs& args,
           const float* scores,
           int32_t num_experts,
           RouterScratch& s,
           int32_t* ids,
           float* weights) {
  s.choice.assign(scores, scores + num_experts);
  if (args.method == RouterMethod::noaux_tc) {
    for (int32_t e = 0; e < num_experts; ++e) {
      s.choice[static_cast<size_t>(e)] += args.bias.as<float>()[e];
    }
  }
  const uint8_t* allowed = nullptr;
  if (args.method != RouterMethod::greedy) {
    const int32_t size = num_experts / args.num_groups;
    s.groups.resize(static_cast<size_t>(args.num_groups));
    for (int32_t g = 0; g < args.num_groups; ++g) {
      s.groups[static_cast<size_t>(g)] = group_score(args.method, s.choice.data() + g * size, size);
    }
    s.chosen_groups.resize(static_cast<size_t>(args.top_groups));
    choose(s.groups.data(),
           nullptr,
           args.num_groups,
           args.top_groups,
           s.taken,
           s.chosen_groups.data());
    s.allowed.assign(static_cast<size_t>(num_experts), 0);
    for (const int32_t group : s.chosen_groups) {
      std::fill_n(s.allowed.begin() + group * size, size, uint8_t{1});
    }
    allowed = s.allowed.data();
  }
  choose(s.choice.data(), allowed, num_experts, args.top_k, s.taken, ids);
  float total = 0.0F;
  for (int32_t k = 0; k < args.top_k; ++k) {
    weights[k] = scores[ids[k]];
    total += weights[k];
  }
  for (int32_t k = 0; k < args.top_k; ++k) {
    const float weight = args.norm_top_k ? weights[k] / (total + 1e-20F) : weights[k];
    weights[k] = weight * args.scaling_factor;
  }
}

}  // namespace

void CpuOps::router(const RouterArgs& args, Stream& /*stream*/) {
  require("router", check(args));
  const int64_t num_rows = args.x.shape[0];
  const auto num_experts = static_cast<int32_t>(args.weight->out_features());
  ConstActivationView x;
  x.format = args.x.dtype == DType::bf16 ? ActFormat::bf16 : ActFormat::f32;
  x.values = args.x;
  const float* const* rows = rows_of(x, inputs_, pointers_);
  float* logits = router_logits_.at_least(num_rows * num_experts);
  const TensorView out =
      make_view(reinterpret_cast<std::byte*>(logits), DType::f32, Shape{num_rows, num_experts});
  matmul(cpu_weight(args.weight).matrices[0].matrix(), rows, num_rows, out);
  RouterScratch s;
  for (int64_t m = 0; m < num_rows; ++m) {
    auto* ids = args.out_ids.row<int32_t>(m);
    auto* weights = args.out_weights.row<float>(m);
    if (!args.positions.empty() && args.positions.as<int32_t>()[m] < 0) {
      std::fill_n(ids, args.top_k, -1);
      std::fill_n(weights, args.top_k, 0.0F);
      continue;
    }
    float* scores = logits + m * num_experts;
    score(args.method, scores, num_experts);
    route(args, scores, num_experts, s, ids, weights);
  }
}

void CpuOps::list_experts(const ConstTensorView& expert_ids,
                          int32_t first_expert,
                          int32_t num_experts,
                          bool has_shared) {
  const auto num_tokens = static_cast<int32_t>(expert_ids.shape[0]);
  const auto top_k = static_cast<int32_t>(expert_ids.shape[1]);
  const int32_t slots = top_k + (has_shared ? 1 : 0);
  std::vector<int32_t>& offsets = experts_.offsets;
  offsets.assign(static_cast<size_t>(num_experts) + 2, 0);
  const auto local_of = [&](int32_t token, int32_t slot) {
    const int32_t local =
        slot == top_k ? num_experts : expert_ids.row<int32_t>(token)[slot] - first_expert;
    const bool is_local = slot == top_k || (local >= 0 && local < num_experts);
    return is_local ? local : -1;
  };
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int32_t slot = 0; slot < slots; ++slot) {
      const int32_t local = local_of(token, slot);
      if (local >= 0) {
        ++offsets[static_cast<size_t>(local) + 1];
      }
    }
  }
  for (size_t e = 1; e < offsets.size(); ++e) {
    offsets[e] += offsets[e - 1];
  }
  experts_.entries.resize(static_cast<size_t>(offsets.back()));
  std::vector<int32_t> next(offsets.begin(), offsets.end() - 1);
  for (int32_t token = 0; token < num_tokens; ++token) {
    for (int32_t slot = 0; slot < slots; ++slot) {
      const int32_t local = local_of(token, slot);
      if (local >= 0) {
        const auto at = static_cast<size_t>(next[static_cast<size_t>(local)]++);
        experts_.entries[at] = token * slots + slot;
      }
    }
  }
}

void CpuOps::moe_gate_up(const MoeGateUpArgs& args, Stream& /*stream*/) {
  require("moe_gate_up", check(args));

  struct Task {
    int32_t expert;
    int32_t begin;  ///< into entries
    int32_t count;
    int64_t column;
  };

  const int32_t num_experts = args.experts->num_experts();
  const bool has_shared = args.shared != nullptr;
  const int64_t slots = args.expert_ids.shape[1] + (has_shared ? 1 : 0);
  const int64_t intermediate = args.experts->out_features();
  const int64_t width = args.inner.format == ActFormat::e4m3 ? kQuantGroup : kMoeColumns;
  const float* const* x = rows_of(args.x, inputs_, pointers_);
  list_experts(args.expert_ids, args.first_expert, num_experts, has_shared);
  std::vector<Task> tasks;
  for (int32_t expert = 0; expert <= num_experts; ++expert) {
    const int32_t end = experts_.offsets[static_cast<size_t>(expert) + 1];
    int32_t begin = experts_.offsets[static_cast<size_t>(expert)];
    for (; begin < end; begin += static_cast<int32_t>(kMaxGemmRows)) {
      const int32_t count = std::min(static_cast<int32_t>(kMaxGemmRows), end - begin);
      for (int64_t column = 0; column < intermediate; column += width) {
        tasks.push_back(Task{expert, begin, count, column});
      }
    }
  }
  pool_.run(static_cast<int64_t>(tasks.size()), [&](int64_t index, int32_t thread) {
    const Task& task = tasks[static_cast<size_t>(index)];
    const CpuWeight& weight = cpu_weight(task.expert == num_experts ? args.shared : args.experts);
    const size_t matrix = task.expert == num_experts ? 0 : static_cast<size_t>(task.expert);
    const int32_t* entries = experts_.entries.data() + task.begin;
    const float** rows = scratch(thread).pointers.at_least(kMaxGemmRows);
    for (int32_t i = 0; i < task.count; ++i) {
      rows[i] = x[entries[i] / slots];
    }
    gate_up_columns(weight.matrices[matrix].matrix(),
                    rows,
                    entries,
                    task.count,
                    task.column,
                    std::min(width, intermediate - task.column),
                    args.inner,
                    thread);
  });
}

void CpuOps::moe_down(const MoeDownArgs& args, Stream& /*stream*/) {
  require("moe_down", check(args));
  const float* const* inner = rows_of(args.inner, inputs_, pointers_);
  list_experts(
      args.expert_ids, args.first_expert, args.experts->num_experts(), args.shared != nullptr);
  const int64_t num_tokens = args.out.shape[0];
  const int64_t panels = cpu_weight(args.experts).matrices[0].matrix().num_panels;
  const int64_t groups = (panels + kMaxPanels - 1) / kMaxPanels;
  const int64_t blocks = (num_tokens + kMoeBlockTokens - 1) / kMoeBlockTokens;
  pool_.run(groups * blocks, [&](int64_t task, int32_t thread) {
    down_block(args, inner, task / groups * kMoeBlockTokens, task % groups * kMaxPanels, thread);
  });
}

/// A block of tokens and up to kMaxPanels panels of out: every local expert's products for the
/// block's slots, then the weighted sums.
void CpuOps::down_block(const MoeDownArgs& args,
                        const float* const* inner,
                        int64_t token_begin,
                        int64_t panel_begin,
                        int32_t thread) {
  const int32_t num_experts = args.experts->num_experts();
  const int64_t top_k = args.expert_ids.shape[1];
  const int32_t num_shared = args.shared != nullptr ? 1 : 0;
  const int64_t slots = top_k + num_shared;
  const int64_t token_count = std::min(kMoeBlockTokens, args.out.shape[0] - token_begin);
  const auto slot_begin = static_cast<int32_t>(token_begin * slots);
  const auto slot_end = static_cast<int32_t>((token_begin + token_count) * slots);
  const int64_t num_panels = cpu_weight(args.experts).matrices[0].matrix().num_panels;
  const int64_t panels = std::min(kMaxPanels, num_panels - panel_begin);
  const int64_t stride = panels * kLanes;
  ThreadScratch& s = scratch(thread);
  float* products = s.slots.at_least(kMoeBlockTokens * slots * kMaxPanels * kLanes);
  uint8_t* present = reinterpret_cast<uint8_t*>(s.indices.at_least(token_count * slots));
  std::fill_n(present, token_count * slots, uint8_t{0});
  const float** rows = s.pointers.at_least(kMaxGemmRows);
  for (int32_t expert = 0; expert < num_experts + num_shared; ++expert) {
    const auto all = experts_.entries.begin();
    const auto first = all + experts_.offsets[static_cast<size_t>(expert)];
    const auto last = all + experts_.offsets[static_cast<size_t>(expert) + 1];
    const auto end = std::lower_bound(first, last, slot_end);
    const CpuWeight& weight = cpu_weight(expert == num_experts ? args.shared : args.experts);
    const size_t matrix = expert == num_experts ? 0 : static_cast<size_t>(expert);
    for (auto at = std::lower_bound(first, last, slot_begin); at < end;) {
      const int64_t count = std::min<int64_t>(kMaxGemmRows, end - at);
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = inner[at[i]];
      }
      const float* tile =
          gemm_tile(weight.matrices[matrix].matrix(), panel_begin, panels, rows, count, thread);
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(tile + i * stride, stride, products + (at[i] - slot_begin) * stride);
        present[at[i] - slot_begin] = 1;
      }
      at += count;
    }
  }
  const int64_t column = panel_begin * kLanes;
  const int64_t columns = std::min(stride, args.out.shape[1] - column);
  float* sum = s.row.at_least(stride);
  for (int64_t m = 0; m < token_count; ++m) {
    std::fill_n(sum, stride, 0.0F);
    for (int64_t slot = 0; slot < slots; ++slot) {
      if (present[m * slots + slot] == 0) {
        continue;
      }
      const float* product = products + (m * slots + slot) * stride;
      const float factor =
          slot == top_k ? 1.0F : args.expert_weights.row<float>(token_begin + m)[slot];
      for (int64_t i = 0; i < stride; ++i) {
        sum[i] += factor * product[i];
      }
    }
    store_row(kernels_, args.out, token_begin + m, column, columns, sum);
  }
}

}  // namespace hadal::cpu
