// Tiny models for tests: the configurations of tests/model/data/tiny_goldens.json with dummy
// weights, and a harness that runs one over any layout, row by row, and returns every logit.
#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/model/model.h>
#include <hadal/plan/batch_plan.h>

#include "catch.h"

namespace hadal::tiny {

/// The parsed goldens; read once.
inline const nlohmann::json& goldens() {
  static const nlohmann::json parsed = [] {
    std::ifstream in(std::string(HADAL_SOURCE_DIR) + "/tests/model/data/tiny_goldens.json");
    return nlohmann::json::parse(in);
  }();
  return parsed;
}

inline std::string config_text(const std::string& variant) {
  return goldens().at(variant).at("config").dump();
}

inline DeepseekConfig config_of(const std::string& variant) {
  auto config = parse_deepseek_config(config_text(variant));
  INFO(variant);
  REQUIRE(config);
  return std::move(config).value();
}

/// Some tokens of a sequence, and the pages that its KV lies in.
struct Row {
  std::vector<int32_t> tokens;
  int32_t kv_begin = 0;
  AttentionForm form = AttentionForm::prompt;
  std::vector<int32_t> pages;
};

struct HarnessConfig {
  int32_t tp = 1;
  int32_t ep = 1;
  bool with_mtp = false;
  CpuMode mode = CpuMode::exact;
  DType kv_dtype = DType::f32;
  bool e4m3_activations = false;
  int32_t num_pages = 16;
  int32_t max_positions = 512;
};

using Logits = std::vector<std::vector<float>>;  ///< [tokens][vocabulary]

class Harness {
 public:
  Harness(const DeepseekConfig& config, const WeightStore& weights, const HarnessConfig& options)
      : config_(config) {
    auto comms = options.tp > 1 ? make_thread_communicators(options.tp)
                                : std::vector<std::unique_ptr<Communicator>>();
    for (int32_t r = 0; r < options.tp; ++r) {
      auto rank = std::make_unique<Rank>();
      rank->backend = make_cpu_backend(
          {.mode = options.mode, .num_threads = 1, .e4m3_activations = options.e4m3_activations});
      rank->comm = options.tp > 1 ? std::move(comms[static_cast<size_t>(r)]) : nullptr;
      rank->stream = rank->backend->create_stream();
      const auto layout = make_parallel_layout(options.tp, options.ep, r);
      REQUIRE(layout);
      auto model = Model::load({.config = config,
                                .layout = layout.value(),
                                .weights = weights,
                                .backend = *rank->backend,
                                .max_positions = options.max_positions,
                                .with_mtp = options.with_mtp,
                                .meter = nullptr});
      INFO((model ? std::string() : model.error().message));
      REQUIRE(model);
      rank->model = std::move(model).value();
      const ModelShape& shape = rank->model->shape();
      REQUIRE(rank->backend->reserve(
          {.max_step_tokens = options.max_positions,
           .max_rows = 32,
           .max_context_tokens = options.max_positions,
           .num_heads = static_cast<int32_t>(config.num_attention_heads / options.tp),
           .qk_nope_head_dim = static_cast<int32_t>(config.qk_nope_head_dim),
           .qk_rope_head_dim = static_cast<int32_t>(config.qk_rope_head_dim),
           .v_head_dim = static_cast<int32_t>(config.v_head_dim),
           .kv_lora_rank = static_cast<int32_t>(config.kv_lora_rank),
           .vocab_size = static_cast<int32_t>(config.vocab_size)}));
      const Shape pool{options.num_pages, shape.num_layers, kPageTokens, shape.kv_width};
      rank->pool.assign(
          static_cast<size_t>(pool.numel() * size_of(options.kv_dtype)),
          std::byte{0xff});  // NaN in every KV type: what is not written must not be read
      rank->pool_view = make_view(rank->pool.data(), options.kv_dtype, pool);
      ranks_.push_back(std::move(rank));
    }
  }

  /// One step over all rows; logits of every token, row after row. A shape of rank 2 for `hidden`,
  /// when given, receives what forward_mtp of the next call takes.
  Logits run(const std::vector<Row>& rows) { return run_ranks(rows, false); }

  /// The first MTP layer over rows whose tokens are one position ahead; takes the hidden states of
  /// the last run, which had the same rows (with at least as many tokens, of which the first are
  /// used).
  Logits run_mtp(const std::vector<Row>& rows) { return run_ranks(rows, true); }

 private:
  struct Rank {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Communicator> comm;
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Model> model;
    std::vector<std::byte> pool;
    TensorView pool_view;
    std::vector<std::byte> hidden;
    std::vector<float> logits;
  };

  /// A step's arrays on the host, which is the device here.
  struct Step {
    std::vector<int32_t> tokens, offsets, token_rows, positions, lengths, table, all_rows;
    std::vector<uint8_t> forms;
    BatchGeometry geometry;
  };

  static ConstTensorView view(const std::vector<int32_t>& values, const Shape& shape) {
    return make_view(reinterpret_cast<const std::byte*>(values.data()), DType::i32, shape);
  }

  static void fill(const std::vector<Row>& rows, Step& s) {
    size_t max_pages = 1;
    for (const Row& row : rows) {
      max_pages = std::max(max_pages, row.pages.size());
    }
    s.table.assign(rows.size() * max_pages, 2147480000);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = rows[r];
      const auto count = static_cast<int32_t>(row.tokens.size());
      s.offsets.push_back(static_cast<int32_t>(s.tokens.size()));
      for (int32_t i = 0; i < count; ++i) {
        s.all_rows.push_back(static_cast<int32_t>(s.tokens.size()));
        s.tokens.push_back(row.tokens[static_cast<size_t>(i)]);
        s.token_rows.push_back(static_cast<int32_t>(r));
        s.positions.push_back(row.kv_begin + i);
      }
      s.lengths.push_back(row.kv_begin + count);
      s.forms.push_back(row.form == AttentionForm::prompt ? kFormPrompt : kFormGenerated);
      std::copy(row.pages.begin(),
                row.pages.end(),
                s.table.begin() + static_cast<std::ptrdiff_t>(r * max_pages));
      if (row.form == AttentionForm::prompt) {
        ++s.geometry.num_prompt_rows;
        s.geometry.num_prompt_tokens += count;
        s.geometry.num_prompt_pages += (s.lengths.back() + kKvPageTokens - 1) / kKvPageTokens;
      }
      s.geometry.max_row_tokens = std::max(s.geometry.max_row_tokens, count);
      s.geometry.max_kv_length = std::max(s.geometry.max_kv_length, s.lengths.back());
    }
    s.offsets.push_back(static_cast<int32_t>(s.tokens.size()));
    const auto num_rows = static_cast<int64_t>(rows.size());
    const auto num_tokens = static_cast<int64_t>(s.tokens.size());
    s.geometry.num_rows = static_cast<int32_t>(num_rows);
    s.geometry.num_tokens = static_cast<int32_t>(num_tokens);
    s.geometry.row_offsets = view(s.offsets, {num_rows + 1});
    s.geometry.token_rows = view(s.token_rows, {num_tokens});
    s.geometry.positions = view(s.positions, {num_tokens});
    s.geometry.kv_lengths = view(s.lengths, {num_rows});
    s.geometry.page_table = view(s.table, {num_rows, static_cast<int64_t>(max_pages)});
    s.geometry.forms =
        make_view(reinterpret_cast<const std::byte*>(s.forms.data()), DType::u8, {num_rows});
  }

  static void run_rank(Rank& rank, const Step& step, bool is_mtp) {
    const int64_t tokens = step.geometry.num_tokens;
    const ModelShape& shape = rank.model->shape();
    std::vector<std::byte> memory(static_cast<size_t>(rank.model->arena_bytes(tokens)) + 256);
    const auto misaligned = reinterpret_cast<uintptr_t>(memory.data()) % 256;
    StepArena arena(memory.data() + (256 - misaligned) % 256,
                    static_cast<int64_t>(memory.size()) - 256,
                    Device{});
    const ForwardContext context{.ops = rank.backend->ops(),
                                 .comm = rank.comm.get(),
                                 .arena = arena,
                                 .kv_pool = rank.pool_view,
                                 .stream = *rank.stream};
    StepInputs inputs;
    inputs.geometry = &step.geometry;
    inputs.tokens = view(step.tokens, {tokens});
    context.ops.begin_step(step.geometry, context.stream);
    const DType plain = rank.backend->numerics().plain;
    const ForwardResult result =
        is_mtp ? rank.model->forward_mtp(
                     0,
                     inputs,
                     make_view(rank.hidden.data(), plain, {tokens, shape.hidden_size}),
                     context)
               : rank.model->forward(inputs, context);
    if (!result.hidden.empty()) {
      const auto bytes = static_cast<size_t>(tokens * shape.hidden_size * size_of(plain));
      rank.hidden.assign(result.hidden.data, result.hidden.data + bytes);
    }
    rank.logits.assign(static_cast<size_t>(tokens * shape.vocab_per_rank), 0.0F);
    rank.model->logits(result,
                       view(step.all_rows, {tokens}),
                       make_view(reinterpret_cast<std::byte*>(rank.logits.data()),
                                 DType::f32,
                                 {tokens, shape.vocab_per_rank}),
                       context);
    rank.stream->synchronize();
  }

  Logits run_ranks(const std::vector<Row>& rows, bool is_mtp) {
    Step step;
    fill(rows, step);
    {
      std::vector<std::jthread> threads;
      for (const auto& rank : ranks_) {
        threads.emplace_back([&step, &rank, is_mtp] { run_rank(*rank, step, is_mtp); });
      }
    }
    const auto vocab = static_cast<size_t>(config_.vocab_size);
    Logits all(step.tokens.size());
    for (size_t t = 0; t < all.size(); ++t) {
      for (const auto& rank : ranks_) {
        const auto width = static_cast<size_t>(rank->model->shape().vocab_per_rank);
        const float* from = rank->logits.data() + t * width;
        all[t].insert(all[t].end(), from, from + width);
      }
      all[t].resize(vocab);
    }
    return all;
  }

  DeepseekConfig config_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

inline int32_t argmax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Largest difference between two rows, relative to the expected row's largest absolute value.
inline double relative_error(const std::vector<float>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() >= expected.size());
  double worst = 0.0;
  double largest = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - expected[i]);
    worst = std::isfinite(difference) ? std::max(worst, difference) : INFINITY;
    largest = std::max(largest, std::abs(expected[i]));
  }
  return worst / largest;
}

}  // namespace hadal::tiny
