// Tiny models for tests: the configurations of tests/model/data/tiny_goldens.json with dummy
// weights, and a harness that runs one over any layout, row by row, and returns every logit.
#pragma once

#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <hadal/base/check.h>
#include <hadal/model/model.h>
#include <hadal/plan/batch_plan.h>

#include "catch.h"

namespace hadal::tiny {

inline std::vector<int32_t> random_tokens(uint32_t seed, size_t count, int64_t vocab) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  }
  return tokens;
}

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
  DeviceType device = DeviceType::cpu;  ///< cuda: one rank, on the first GPU
  CpuMode mode = CpuMode::exact;
  DType kv_dtype = DType::f32;
  bool e4m3_activations = false;
  int32_t num_pages = 16;
  int32_t max_positions = 512;
  int32_t max_rows = 80;
  int32_t cpu_threads = 1;  ///< of each rank
};

using Logits = std::vector<std::vector<float>>;  ///< [tokens][vocabulary]

class Harness {
 public:
  Harness(const DeepseekConfig& config, const WeightStore& weights, const HarnessConfig& options)
      : config_(config) {
    if (options.tp > 1) {
      thread_comms_ = make_thread_communicators(options.tp);
    }
    for (int32_t r = 0; r < options.tp; ++r) {
      Communicator* comm = options.tp > 1 ? thread_comms_[static_cast<size_t>(r)].get() : nullptr;
      add_rank(weights, options, r, comm);
    }
  }

  /// One rank alone, whose peers are elsewhere: all call run together and get all logits.
  Harness(const DeepseekConfig& config,
          const WeightStore& weights,
          const HarnessConfig& options,
          Communicator& comm)
      : config_(config) {
    add_rank(weights, options, comm.rank(), comm.world_size() > 1 ? &comm : nullptr);
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
    Communicator* comm = nullptr;  ///< null in a world of one
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Model> model;
    Buffer pool;
    TensorView pool_view;
    Buffer hidden;
    std::vector<float> logits;
    std::vector<Buffer> inputs;  ///< of the step in hand

    Buffer allocate(int64_t size_bytes) const {
      auto buffer = backend->allocate(size_bytes, MemoryKind::device);
      HADAL_CHECK(static_cast<bool>(buffer),
                  "harness: no memory");  // threads: Catch's macros may not run
      return std::move(buffer).value();
    }

    template <class T>
    void fill(const Buffer& buffer, const std::vector<T>& values) const {
      const Shape bytes{static_cast<int64_t>(values.size() * sizeof(T))};
      backend->copy(make_view(buffer.data(), DType::u8, bytes, backend->device()),
                    make_view(reinterpret_cast<const std::byte*>(values.data()), DType::u8, bytes),
                    *stream);
      stream->synchronize();
    }

    template <class T>
    ConstTensorView put(const std::vector<T>& values, DType dtype, const Shape& shape) {
      inputs.push_back(allocate(static_cast<int64_t>(values.size() * sizeof(T))));
      fill(inputs.back(), values);
      return ConstTensorView(make_view(inputs.back().data(), dtype, shape, backend->device()));
    }
  };

  /// A step's arrays on the host.
  struct Step {
    std::vector<int32_t> tokens, offsets, token_rows, positions, lengths, table, all_rows;
    std::vector<uint8_t> forms;
    BatchGeometry geometry;  ///< its numbers; each rank adds its views
  };

  static std::unique_ptr<Backend> make_backend(const HarnessConfig& options) {
    if (options.device == DeviceType::cpu) {
      return make_cpu_backend({.mode = options.mode,
                               .num_threads = options.cpu_threads,
                               .e4m3_activations = options.e4m3_activations});
    }
    auto backend = make_cuda_backend({.e4m3_activations = options.e4m3_activations});
    INFO((backend ? std::string() : backend.error().message));
    REQUIRE(backend);
    return std::move(backend).value();
  }

  static BatchGeometry place(Rank& rank, const Step& s) {
    BatchGeometry g = s.geometry;
    rank.inputs.clear();
    const int64_t rows = g.num_rows;
    const int64_t tokens = g.num_tokens;
    const auto width = static_cast<int64_t>(s.table.size()) / rows;
    g.row_offsets = rank.put(s.offsets, DType::i32, {rows + 1});
    g.token_rows = rank.put(s.token_rows, DType::i32, {tokens});
    g.positions = rank.put(s.positions, DType::i32, {tokens});
    g.kv_lengths = rank.put(s.lengths, DType::i32, {rows});
    g.page_table = rank.put(s.table, DType::i32, {rows, width});
    g.forms = rank.put(s.forms, DType::u8, {rows});
    return g;
  }

  void add_rank(const WeightStore& weights,
                const HarnessConfig& options,
                int32_t r,
                Communicator* comm) {
    auto rank = std::make_unique<Rank>();
    rank->backend = make_backend(options);
    rank->comm = comm;
    rank->stream = rank->backend->create_stream();
    const auto layout = make_parallel_layout(options.tp, options.ep, r);
    REQUIRE(layout);
    auto model = Model::load({.config = config_,
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
         .max_rows = options.max_rows,
         .max_context_tokens = options.max_positions,
         .num_heads = static_cast<int32_t>(config_.num_attention_heads / options.tp),
         .qk_nope_head_dim = static_cast<int32_t>(config_.qk_nope_head_dim),
         .qk_rope_head_dim = static_cast<int32_t>(config_.qk_rope_head_dim),
         .v_head_dim = static_cast<int32_t>(config_.v_head_dim),
         .kv_lora_rank = static_cast<int32_t>(config_.kv_lora_rank),
         .vocab_size = static_cast<int32_t>(config_.vocab_size)}));
    const int64_t record = config_.kv_record(options.kv_dtype).elements();
    const Shape pool{options.num_pages, shape.num_layers, kPageTokens, record};
    rank->pool = rank->allocate(pool.numel() * size_of(options.kv_dtype));
    // NaN in every KV type: what is not written must not be read.
    const std::vector<uint8_t> poison(static_cast<size_t>(rank->pool.size_bytes()), 0xff);
    rank->fill(rank->pool, poison);
    rank->pool_view = make_view(rank->pool.data(), options.kv_dtype, pool, rank->backend->device());
    ranks_.push_back(std::move(rank));
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
    s.geometry.num_rows = static_cast<int32_t>(rows.size());
    s.geometry.num_tokens = static_cast<int32_t>(s.tokens.size());
  }

  static void run_rank(Rank& rank, const Step& step, bool is_mtp) {
    const int64_t tokens = step.geometry.num_tokens;
    const ModelShape& shape = rank.model->shape();
    const Device device = rank.backend->device();
    const BatchGeometry geometry = place(rank, step);
    const int64_t arena_bytes = rank.model->arena_bytes(tokens);
    const Buffer memory = rank.allocate(arena_bytes);
    StepArena arena(memory.data(), arena_bytes, device);
    const ForwardContext context{.ops = rank.backend->ops(),
                                 .comm = rank.comm,
                                 .arena = arena,
                                 .kv_pool = rank.pool_view,
                                 .stream = *rank.stream};
    StepInputs inputs;
    inputs.geometry = &geometry;
    inputs.tokens = rank.put(step.tokens, DType::i32, {tokens});
    context.ops.begin_step(geometry, context.stream);
    const DType plain = rank.backend->numerics().plain;
    const Shape hidden{tokens, shape.hidden_size};
    const ForwardResult result =
        is_mtp ? rank.model->forward_mtp(
                     0, inputs, make_view(rank.hidden.data(), plain, hidden, device), context)
               : rank.model->forward(inputs, context);
    const Shape logits{tokens, shape.vocab_per_rank};
    const Buffer out = rank.allocate(4 * logits.numel());
    rank.model->logits(result,
                       rank.put(step.all_rows, DType::i32, {tokens}),
                       make_view(out.data(), DType::f32, logits, device),
                       context);
    if (!result.hidden.empty()) {
      rank.hidden = rank.allocate(hidden.numel() * size_of(plain));
      rank.backend->copy(
          make_view(rank.hidden.data(), plain, hidden, device), result.hidden, *rank.stream);
    }
    rank.logits.assign(static_cast<size_t>(logits.numel()), 0.0F);
    rank.backend->copy(
        make_view(reinterpret_cast<std::byte*>(rank.logits.data()), DType::f32, logits),
        ConstTensorView(make_view(out.data(), DType::f32, logits, device)),
        *rank.stream);
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
    std::vector<float> gathered;
    std::vector<const float*> parts;
    for (const auto& rank : ranks_) {
      parts.push_back(rank->logits.data());
    }
    Rank& first = *ranks_.front();
    if (ranks_.size() == 1 && first.comm != nullptr) {
      const auto ranks = static_cast<size_t>(first.comm->world_size());
      const auto size = static_cast<int64_t>(first.logits.size());
      gathered.resize(first.logits.size() * ranks);
      first.comm->all_gather(float_view(first.logits, {size}),
                             float_view(gathered, {static_cast<int64_t>(ranks), size}),
                             *first.stream);
      parts.clear();
      for (size_t r = 0; r < ranks; ++r) {
        parts.push_back(gathered.data() + r * first.logits.size());
      }
    }
    const auto width = static_cast<size_t>(first.model->shape().vocab_per_rank);
    Logits all(step.tokens.size());
    for (size_t t = 0; t < all.size(); ++t) {
      for (const float* part : parts) {
        all[t].insert(all[t].end(), part + t * width, part + (t + 1) * width);
      }
      all[t].resize(static_cast<size_t>(config_.vocab_size));
    }
    return all;
  }

  static TensorView float_view(std::vector<float>& values, const Shape& shape) {
    return make_view(reinterpret_cast<std::byte*>(values.data()), DType::f32, shape);
  }

  DeepseekConfig config_;
  std::vector<std::unique_ptr<Communicator>> thread_comms_;
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
