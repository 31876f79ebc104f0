// Times every op of a decoder of hadal-mini's shape, at decode and prefill sizes, and the sum of a
// step.
//
//   ops_bench [threads] [filter] [exact]
//
// Prints microseconds, GB/s of weights and cache read, GFLOP/s, and both as fractions of what this
// machine was measured to do at the start: streaming reads of memory and float32 multiply-adds.
// Weights of five layers alternate, as in the model, so caches help here as much as there.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <hadal/backend/backend.h>
#include <hadal/ops/ops.h>

namespace {

using namespace hadal;

constexpr int64_t kHidden = 256;
constexpr int64_t kQRank = 128;
constexpr int64_t kHeads = 8;
constexpr int64_t kNope = 128;
constexpr int64_t kRope = 64;
constexpr int64_t kValue = 128;
constexpr int64_t kLatents = 512;
constexpr int64_t kWidth = kLatents + kRope;
constexpr int64_t kInner = 512;
constexpr int32_t kExperts = 8;
constexpr int32_t kTopK = 2;
constexpr int64_t kVocab = 2048;
constexpr int kLayers = 5;

bool g_processor_time = false;

/// Wall time; with one thread its processor time, so that other load on the machine counts less.
struct Clock {
  using time_point = double;

  static double now() {
    timespec time{};
    clock_gettime(g_processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }
};

double seconds_since(Clock::time_point start) {
  return Clock::now() - start;
}

std::mt19937_64 g_random(1);

struct Tensor {
  std::vector<std::byte> memory;
  TensorView view;

  Tensor() = default;

  Tensor(DType dtype, const Shape& shape)
      : memory(static_cast<size_t>(shape.numel() * size_of(dtype) + 64)),
        view(make_view(memory.data(), dtype, shape)) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < shape.numel(); ++i) {
      if (dtype == DType::f32) {
        view.as<float>()[i] = normal(g_random);
      } else if (dtype == DType::bf16) {
        view.as<uint16_t>()[i] = f32_to_bf16(0.1F * normal(g_random));
      } else if (dtype == DType::f8_e4m3) {
        view.as<uint8_t>()[i] = f32_to_e4m3(100.0F * normal(g_random));
      }
    }
  }
};

std::unique_ptr<Weight> make_weight(Backend& backend,
                                    WeightRole role,
                                    DType dtype,
                                    const std::vector<std::pair<int64_t, int64_t>>& shapes) {
  std::vector<Tensor> values;
  std::vector<Tensor> scales;
  std::vector<RawMatrix> raw;
  for (const auto& [rows, columns] : shapes) {
    values.emplace_back(dtype, Shape{rows, columns});
    scales.emplace_back(DType::f32, Shape{(rows + 127) / 128, (columns + 127) / 128});
    std::fill_n(scales.back().view.as<float>(), scales.back().view.shape.numel(), 5e-4F);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    raw.push_back({.values = values[i].view, .scale_inv = scales[i].view});
  }
  WeightSource source;
  source.role = role;
  source.parts = raw;
  source.num_heads = kHeads;
  source.qk_nope_head_dim = kNope;
  source.v_head_dim = kValue;
  return std::move(backend.prepare_weight(source)).value();
}

struct Layer {
  std::unique_ptr<Weight> a, q_b, kv_b, o, gate_up, down, router, shared_gate_up, shared_down;
  Tensor kv;
};

struct Times {
  std::map<std::string, double> best;

  void add(const std::string& name, double seconds) {
    const auto [at, is_new] = best.emplace(name, seconds);
    if (!is_new) {
      at->second = std::min(at->second, seconds);
    }
  }
};

/// The ops of a step over `rows` sequences of `context` tokens, `tokens` new ones each.
class Step {
 public:
  Step(Backend& backend, int32_t rows, int32_t tokens, int32_t context, uint8_t form)
      : backend_(backend), stream_(backend.create_stream()), total_(rows * tokens) {
    const int32_t pages = (context + 63) / 64;
    make_geometry(rows, tokens, context, pages, form);
    const auto f8 = DType::f8_e4m3;
    for (int i = 0; i < kLayers; ++i) {
      Layer layer;
      layer.a =
          make_weight(backend, WeightRole::linear, f8, {{kQRank, kHidden}, {kWidth, kHidden}});
      layer.q_b =
          make_weight(backend, WeightRole::linear, f8, {{kHeads * (kNope + kRope), kQRank}});
      layer.kv_b =
          make_weight(backend, WeightRole::kv_b, f8, {{kHeads * (kNope + kValue), kLatents}});
      layer.o = make_weight(backend, WeightRole::linear, f8, {{kHidden, kHeads * kValue}});
      std::vector<std::pair<int64_t, int64_t>> gates(2 * kExperts, {kInner, kHidden});
      std::vector<std::pair<int64_t, int64_t>> downs(kExperts, {kHidden, kInner});
      layer.gate_up = make_weight(backend, WeightRole::gate_up, f8, gates);
      layer.down = make_weight(backend, WeightRole::down, f8, downs);
      layer.router = make_weight(backend, WeightRole::router, DType::bf16, {{kExperts, kHidden}});
      layer.shared_gate_up =
          make_weight(backend, WeightRole::gate_up, f8, {{kInner, kHidden}, {kInner, kHidden}});
      layer.shared_down = make_weight(backend, WeightRole::down, f8, {{kHidden, kInner}});
      layer.kv = Tensor(DType::bf16, Shape{rows * pages, 64, kWidth});
      layers_.push_back(std::move(layer));
    }
    lm_head_ = make_weight(backend, WeightRole::lm_head, DType::bf16, {{kVocab, kHidden}});
    residual_ = Tensor(DType::f32, Shape{total_, kHidden});
    normed_ = Tensor(DType::f32, Shape{total_, kHidden});
    norm_weight_ = Tensor(DType::f32, Shape{kLatents});
    rope_ = Tensor(DType::f32, Shape{context + 1, kRope});
    fused_ = Tensor(DType::f32, Shape{total_, kQRank + kWidth});
    q_latent_ = Tensor(DType::f32, Shape{total_, kQRank});
    q_ = Tensor(DType::f32, Shape{total_, kHeads, kNope + kRope});
    heads_ = Tensor(DType::f32, Shape{total_, kHeads * kValue});
    partial_ = Tensor(DType::f32, Shape{total_, kHidden});
    ids_ = Tensor(DType::i32, Shape{total_, kTopK});
    weights_ = Tensor(DType::f32, Shape{total_, kTopK});
    inner_ = Tensor(DType::f32, Shape{total_ * (kTopK + 1), kInner});
    logits_ = Tensor(DType::f32, Shape{rows, kVocab});
    logit_rows_ = Tensor(DType::i32, Shape{rows});
    for (int32_t r = 0; r < rows; ++r) {
      logit_rows_.view.as<int32_t>()[r] = (r + 1) * tokens - 1;
    }
    form_ = form;
  }

  double run(Times& times) {
    const auto start = Clock::now();
    backend_.ops().begin_step(geometry_, *stream_);
    for (Layer& layer : layers_) {
      attention(layer, times);
      experts(layer, times);
    }
    time(times, "lm_head", [&](Ops& ops) {
      ops.lm_head({.x = act(normed_),
                   .rows = logit_rows_.view,
                   .weight = lm_head_.get(),
                   .out = logits_.view},
                  *stream_);
    });
    return seconds_since(start);
  }

 private:
  void make_geometry(int32_t rows, int32_t tokens, int32_t context, int32_t pages, uint8_t form) {
    offsets_ = Tensor(DType::i32, Shape{rows + 1});
    token_rows_ = Tensor(DType::i32, Shape{total_});
    positions_ = Tensor(DType::i32, Shape{total_});
    lengths_ = Tensor(DType::i32, Shape{rows});
    table_ = Tensor(DType::i32, Shape{rows, pages});
    forms_ = Tensor(DType::u8, Shape{rows});
    for (int32_t r = 0; r < rows; ++r) {
      offsets_.view.as<int32_t>()[r + 1] = (r + 1) * tokens;
      lengths_.view.as<int32_t>()[r] = context;
      forms_.view.as<uint8_t>()[r] = form;
      for (int32_t i = 0; i < tokens; ++i) {
        token_rows_.view.as<int32_t>()[r * tokens + i] = r;
        positions_.view.as<int32_t>()[r * tokens + i] = context - tokens + i;
      }
      for (int32_t p = 0; p < pages; ++p) {
        table_.view.row<int32_t>(r)[p] = p * rows + r;
      }
    }
    geometry_.row_offsets = offsets_.view;
    geometry_.token_rows = token_rows_.view;
    geometry_.positions = positions_.view;
    geometry_.kv_lengths = lengths_.view;
    geometry_.page_table = table_.view;
    geometry_.forms = forms_.view;
    geometry_.num_tokens = total_;
    geometry_.num_rows = rows;
    geometry_.num_prompt_rows = form == kFormPrompt ? rows : 0;
    geometry_.num_prompt_tokens = form == kFormPrompt ? total_ : 0;
    geometry_.num_prompt_pages = form == kFormPrompt ? rows * pages : 0;
    geometry_.max_row_tokens = tokens;
    geometry_.max_kv_length = context;
  }

  static ActivationView act(const Tensor& tensor) { return {ActFormat::f32, tensor.view, {}}; }

  template <class Body>
  void time(Times& times, const std::string& name, const Body& body) {
    const auto start = Clock::now();
    body(backend_.ops());
    pending_[name] += seconds_since(start);
    if (name == "lm_head") {
      for (auto& [key, seconds] : pending_) {
        times.add(key, seconds);
      }
      pending_.clear();
    }
  }

  void add_norm(Times& times) {
    time(times, "add_norm", [&](Ops& ops) {
      ConstTensorView weight = norm_weight_.view;
      weight.shape = Shape{kHidden};
      ops.add_norm({.addend = partial_.view,
                    .residual = residual_.view,
                    .weight = weight,
                    .out = act(normed_)},
                   *stream_);
    });
  }

  void attention(Layer& layer, Times& times) {
    add_norm(times);
    time(times, "linear a", [&](Ops& ops) {
      ops.linear({.x = act(normed_), .weight = layer.a.get(), .out = fused_.view}, *stream_);
    });
    time(times, "latent_write", [&](Ops& ops) {
      ConstTensorView q_weight = norm_weight_.view;
      q_weight.shape = Shape{kQRank};
      ops.latent_write({.geometry = &geometry_,
                        .q_latent = fused_.view.columns(0, kQRank),
                        .q_norm_weight = q_weight,
                        .kv_latent = fused_.view.columns(kQRank, kWidth),
                        .kv_norm_weight = norm_weight_.view,
                        .rope_table = rope_.view,
                        .out_q = act(q_latent_),
                        .kv_pages = layer.kv.view},
                       *stream_);
    });
    TensorView flat_q = q_.view;
    flat_q.shape = Shape{total_, kHeads * (kNope + kRope)};
    flat_q.strides = dense_strides(flat_q.shape);
    time(times, "linear q_b", [&](Ops& ops) {
      ops.linear({.x = act(q_latent_), .weight = layer.q_b.get(), .out = flat_q}, *stream_);
    });
    time(times, "rope_query", [&](Ops& ops) {
      ops.rope_query({.geometry = &geometry_, .q = q_.view, .rope_table = rope_.view}, *stream_);
    });
    time(times, "attention", [&](Ops& ops) {
      const AttentionArgs args{.geometry = &geometry_,
                               .q = q_.view,
                               .kv_pages = layer.kv.view,
                               .kv_b = layer.kv_b.get(),
                               .softmax_scale = 0.07F,
                               .out = act(heads_)};
      if (form_ == kFormPrompt) {
        ops.attention_prompt(args, *stream_);
      } else {
        ops.attention_generated(args, *stream_);
      }
    });
    time(times, "linear o", [&](Ops& ops) {
      ops.linear({.x = act(heads_), .weight = layer.o.get(), .out = partial_.view}, *stream_);
    });
  }

  void experts(Layer& layer, Times& times) {
    add_norm(times);
    time(times, "router", [&](Ops& ops) {
      ops.router({.x = normed_.view,
                  .weight = layer.router.get(),
                  .top_k = kTopK,
                  .out_ids = ids_.view,
                  .out_weights = weights_.view},
                 *stream_);
    });
    time(times, "moe_gate_up", [&](Ops& ops) {
      ops.moe_gate_up({.x = act(normed_),
                       .expert_ids = ids_.view,
                       .experts = layer.gate_up.get(),
                       .shared = layer.shared_gate_up.get(),
                       .inner = act(inner_)},
                      *stream_);
    });
    time(times, "moe_down", [&](Ops& ops) {
      ops.moe_down({.inner = act(inner_),
                    .expert_ids = ids_.view,
                    .expert_weights = weights_.view,
                    .experts = layer.down.get(),
                    .shared = layer.shared_down.get(),
                    .out = partial_.view},
                   *stream_);
    });
    std::fill_n(partial_.view.as<float>(), total_ * kHidden, 0.1F);
  }

  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  int32_t total_;
  uint8_t form_ = kFormGenerated;
  BatchGeometry geometry_;
  Tensor offsets_, token_rows_, positions_, lengths_, table_, forms_;
  std::vector<Layer> layers_;
  std::unique_ptr<Weight> lm_head_;
  Tensor residual_, normed_, norm_weight_, rope_, fused_, q_latent_, q_, heads_, partial_, ids_,
      weights_, inner_, logits_, logit_rows_;
  std::map<std::string, double> pending_;
};

struct Machine {
  double gigabytes = 0.0;
  double gigaflops = 0.0;
};

/// Multiply-adds of an op over all layers, for one step.
double flops_of(const std::string& op, double tokens, double context, bool is_prompt, double rows) {
  const double layers = kLayers;
  if (op == "linear a")
    return 2.0 * layers * tokens * kHidden * (kQRank + kWidth);
  if (op == "linear q_b")
    return 2.0 * layers * tokens * kQRank * kHeads * (kNope + kRope);
  if (op == "linear o")
    return 2.0 * layers * tokens * kHeads * kValue * kHidden;
  if (op == "router")
    return 2.0 * layers * tokens * kHidden * kExperts;
  if (op == "moe_gate_up")
    return 4.0 * layers * tokens * (kTopK + 1) * kHidden * kInner;
  if (op == "moe_down")
    return 2.0 * layers * tokens * (kTopK + 1) * kHidden * kInner;
  if (op == "lm_head")
    return 2.0 * rows * kHidden * kVocab;
  if (op == "attention" && is_prompt) {
    const double pairs = tokens * (context - tokens / rows / 2.0);
    return 2.0 * layers * kHeads *
           (pairs * (kNope + kRope + kValue) + rows * context * kLatents * (kNope + kValue));
  }
  if (op == "attention") {
    return 2.0 * layers * kHeads * tokens *
           (context * (kWidth + kLatents) + kLatents * (kNope + kValue));
  }
  return 0.0;
}

Machine measure(Backend& backend, int32_t threads) {
  Machine machine;
  {  // Reads of 256 MiB by all threads, best of five.
    const int64_t count = int64_t{64} << 20;
    std::vector<float> data(static_cast<size_t>(count), 1.0F);
    for (int repeat = 0; repeat < 5; ++repeat) {
      std::vector<float> sums(static_cast<size_t>(threads) * 16);
      const auto read = [&](int32_t t) {
        float lanes[64] = {};
        const int64_t begin = count / threads * t;
        for (int64_t i = begin; i + 64 <= begin + count / threads; i += 64) {
          for (int64_t j = 0; j < 64; ++j) {
            lanes[j] += data[static_cast<size_t>(i + j)];
          }
        }
        for (int64_t j = 0; j < 16; ++j) {
          sums[static_cast<size_t>(t * 16 + j)] =
              lanes[j] + lanes[16 + j] + lanes[32 + j] + lanes[48 + j];
        }
      };
      const auto start = Clock::now();
      std::vector<std::jthread> workers;
      for (int32_t t = 1; t < threads; ++t) {
        workers.emplace_back(read, t);
      }
      read(0);
      workers.clear();
      machine.gigabytes =
          std::max(machine.gigabytes, static_cast<double>(count) * 4e-9 / seconds_since(start));
    }
  }
  {  // A product that stays in cache: 1024 x 512 times 512 x 512, in float32.
    const auto weight = make_weight(backend, WeightRole::linear, DType::f32, {{512, 512}});
    const Tensor x(DType::f32, Shape{1024, 512});
    const Tensor y(DType::f32, Shape{1024, 512});
    const auto stream = backend.create_stream();
    for (int repeat = 0; repeat < 20; ++repeat) {
      const auto start = Clock::now();
      backend.ops().linear(
          {.x = {ActFormat::f32, x.view, {}}, .weight = weight.get(), .out = y.view}, *stream);
      machine.gigaflops =
          std::max(machine.gigaflops, 2e-9 * 1024 * 512 * 512 / seconds_since(start));
    }
  }
  return machine;
}

struct Case {
  const char* name;
  int32_t rows;
  int32_t tokens;
  int32_t context;
  uint8_t form;
  int repeats;
};

}  // namespace

int main(int argc, char** argv) {
  const int32_t threads =
      argc > 1 ? std::atoi(argv[1]) : static_cast<int32_t>(std::thread::hardware_concurrency());
  const std::string filter = argc > 2 ? argv[2] : "";
  const bool is_exact = argc > 3 && std::strcmp(argv[3], "exact") == 0;
  const auto backend =
      make_cpu_backend({.mode = is_exact ? CpuMode::exact : CpuMode::fast, .num_threads = threads});
  g_processor_time = threads == 1;
  const Machine machine = measure(*backend, threads);
  std::printf("%d threads: memory %.1f GB/s, products %.1f GFLOP/s\n",
              threads,
              machine.gigabytes,
              machine.gigaflops);
  const Case cases[] = {{"decode 1 x 128", 1, 1, 128, kFormGenerated, 60},
                        {"decode 1 x 512", 1, 1, 512, kFormGenerated, 60},
                        {"decode 1 x 2048", 1, 1, 2048, kFormGenerated, 40},
                        {"decode 16 x 512", 16, 1, 512, kFormGenerated, 20},
                        {"prefill 1 x 1024", 1, 1024, 1024, kFormPrompt, 3},
                        {"prefill 512 at 1024", 1, 512, 1024, kFormPrompt, 3}};
  for (const Case& c : cases) {
    if (!filter.empty() && std::string(c.name).find(filter) == std::string::npos) {
      continue;
    }
    Step step(*backend, c.rows, c.tokens, c.context, c.form);
    Times times;
    double best = 1e30;
    for (int i = 0; i < c.repeats; ++i) {
      best = std::min(best, step.run(times));
    }
    const double tokens = static_cast<double>(c.rows) * c.tokens;
    std::printf("%s: %.3f ms a step, %.0f tokens/s\n", c.name, best * 1e3, tokens / best);
    for (const auto& [op, seconds] : times.best) {
      const double flops =
          flops_of(op, tokens, c.context, c.form == kFormPrompt, static_cast<double>(c.rows));
      std::printf("  %-14s %9.1f us  %6.1f GFLOP/s  %4.0f %% of products\n",
                  op.c_str(),
                  seconds * 1e6,
                  flops / seconds * 1e-9,
                  100.0 * flops / seconds * 1e-9 / machine.gigaflops);
    }
  }
  return 0;
}
