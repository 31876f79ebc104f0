// The rows of a profiled step are equally long, so a row's share of attention follows from the
// step's sums.
#include "profile_ops.h"

#include <set>

#include <hadal/ops/kv_record.h>

namespace hadal {
namespace {

double bytes_of(const ConstTensorView& view) {
  return view.empty() ? 0.0 : static_cast<double>(view.shape.numel() * size_of(view.dtype));
}

double bytes_of(const ConstActivationView& view) {
  return bytes_of(view.values) + bytes_of(view.scales);
}

std::string sized(const char* op, int64_t out, int64_t in) {
  return std::string(op) + " " + std::to_string(out) + "x" + std::to_string(in);
}

double value_bytes(const Weight& weight) {
  return static_cast<double>(size_of(weight.dtype()));
}

/// Elements of one expert's matrices.
double elements(const Weight& weight) {
  const double pair = weight.role() == WeightRole::gate_up ? 2.0 : 1.0;
  return pair * static_cast<double>(weight.out_features() * weight.in_features());
}

double tokens_of(const BatchGeometry& g, bool prompt) {
  return prompt ? g.num_prompt_tokens : g.num_tokens - g.num_prompt_tokens;
}

}  // namespace

class ProfilingOps final : public Ops {
 public:
  ProfilingOps(Backend& backend, Ops& inner) : backend_(backend), inner_(inner) {}

  void set_mode(ProfileMode mode) {
    mode_ = mode;
    samples_.clear();
    if (mode == ProfileMode::routing) {
      routing_.clear();
    }
    layer_ = 0;
  }

  void set_routing(std::vector<ConstTensorView> expert_ids) { expert_ids_ = std::move(expert_ids); }

  std::vector<OpSample> samples() const {
    std::vector<OpSample> result = samples_;
    for (size_t i = 0; i < result.size(); ++i) {
      result[i].seconds = events_[2 * i + 1]->seconds_since(*events_[2 * i]);
    }
    return result;
  }

  void begin_step(const BatchGeometry& geometry, Stream& stream) override {
    samples_.clear();
    layer_ = 0;
    inner_.begin_step(geometry, stream);
  }

  void copy_pages(const PageCopyArgs& args, Stream& stream) override {
    inner_.copy_pages(args, stream);
  }

  void reset_slots(const ResetSlotsArgs& args, Stream& stream) override {
    inner_.reset_slots(args, stream);
  }

  void embed(const EmbedArgs& args, Stream& stream) override {
    timed({"embed", 0, 2 * bytes_of(args.out), 0}, stream, [&] { inner_.embed(args, stream); });
  }

  void add_norm(const AddNormArgs& args, Stream& stream) override {
    const double bytes = bytes_of(args.addend) + 2 * bytes_of(args.residual) + bytes_of(args.out) +
                         bytes_of(args.out_plain);
    timed({"add_norm", 0, bytes, 0}, stream, [&] { inner_.add_norm(args, stream); });
  }

  void linear(const LinearArgs& args, Stream& stream) override {
    timed(product("linear", *args.weight, args.x, bytes_of(args.out), args.x.values.shape[0]),
          stream,
          [&] { inner_.linear(args, stream); });
  }

  void gate_up(const GateUpArgs& args, Stream& stream) override {
    timed(product("gate_up", *args.weight, args.x, bytes_of(args.out), args.x.values.shape[0]),
          stream,
          [&] { inner_.gate_up(args, stream); });
  }

  void lm_head(const LmHeadArgs& args, Stream& stream) override {
    timed(product("lm_head", *args.weight, args.x, bytes_of(args.out), args.rows.shape[0]),
          stream,
          [&] { inner_.lm_head(args, stream); });
  }

  void latent_write(const LatentWriteArgs& args, Stream& stream) override {
    const auto record = static_cast<double>(args.kv_pages.shape[2] * size_of(args.kv_pages.dtype));
    const double bytes = bytes_of(args.q_latent) + bytes_of(args.out_q) + bytes_of(args.kv_latent) +
                         args.geometry->num_tokens * record;
    timed({"latent_write", 0, bytes, 0}, stream, [&] { inner_.latent_write(args, stream); });
  }

  void rope_query(const RopeQueryArgs& args, Stream& stream) override {
    const double share =
        static_cast<double>(args.rope_table.shape[1]) / static_cast<double>(args.q.shape[2]);
    timed({"rope_query", 0, 2 * bytes_of(args.q) * share, 0}, stream, [&] {
      inner_.rope_query(args, stream);
    });
  }

  void attention_prompt(const AttentionArgs& args, Stream& stream) override {
    timed(attention(args, true), stream, [&] { inner_.attention_prompt(args, stream); });
  }

  void attention_generated(const AttentionArgs& args, Stream& stream) override {
    timed(attention(args, false), stream, [&] { inner_.attention_generated(args, stream); });
  }

  void router(const RouterArgs& args, Stream& stream) override {
    const double weight = elements(*args.weight);
    const auto rows = static_cast<double>(args.x.shape[0]);
    timed({sized("router", args.weight->out_features(), args.weight->in_features()),
           0,
           weight * value_bytes(*args.weight) + bytes_of(args.x),
           2 * rows * weight},
          stream,
          [&] { inner_.router(args, stream); });
    if (!expert_ids_.empty()) {
      const ConstTensorView& ids = expert_ids_[layer_ % expert_ids_.size()];
      backend_.copy(args.out_ids, ids.rows(0, args.out_ids.shape[0]), stream);
    }
    if (mode_ == ProfileMode::routing) {
      read_routing(args.out_ids, stream);
    }
  }

  void moe_gate_up(const MoeGateUpArgs& args, Stream& stream) override {
    timed(experts("moe_gate_up",
                  *args.experts,
                  args.shared,
                  args.first_expert,
                  args.expert_ids,
                  bytes_of(args.x) + bytes_of(args.inner)),
          stream,
          [&] { inner_.moe_gate_up(args, stream); });
  }

  void moe_down(const MoeDownArgs& args, Stream& stream) override {
    timed(experts("moe_down",
                  *args.experts,
                  args.shared,
                  args.first_expert,
                  args.expert_ids,
                  bytes_of(args.inner) + bytes_of(args.out)),
          stream,
          [&] { inner_.moe_down(args, stream); });
    ++layer_;
  }

  void sample(const SampleArgs& args, Stream& stream) override {
    timed({"sample", 0, bytes_of(args.logits), 0}, stream, [&] { inner_.sample(args, stream); });
  }

 private:
  template <class Run>
  void timed(OpSample sample, Stream& stream, const Run& run) {
    if (mode_ != ProfileMode::timing) {
      run();
      return;
    }
    while (events_.size() < 2 * (samples_.size() + 1)) {
      events_.push_back(backend_.create_event());
    }
    Event& begin = *events_[2 * samples_.size()];
    Event& end = *events_[2 * samples_.size() + 1];
    samples_.push_back(std::move(sample));
    begin.record(stream);
    run();
    end.record(stream);
  }

  static OpSample product(const char* op,
                          const Weight& weight,
                          const ConstActivationView& x,
                          double out_bytes,
                          int64_t rows) {
    const double size = elements(weight);
    const double share =
        static_cast<double>(rows) / static_cast<double>(std::max<int64_t>(1, x.values.shape[0]));
    return {sized(op, weight.out_features(), weight.in_features()),
            0,
            size * value_bytes(weight) + bytes_of(x) * share + out_bytes,
            2 * static_cast<double>(rows) * size};
  }

  static OpSample attention(const AttentionArgs& args, bool prompt) {
    const BatchGeometry& g = *args.geometry;
    const double tokens = tokens_of(g, prompt);
    const double rows = prompt ? g.num_prompt_rows : g.num_rows - g.num_prompt_rows;
    const double length = g.max_kv_length;
    const auto heads = static_cast<double>(args.q.shape[1]);
    const auto latents = static_cast<double>(args.kv_b->in_features());
    const KvRecord record = kv_record(args.kv_pages, args.kv_b->in_features());
    const double width = latents + static_cast<double>(record.rope);
    const auto head_dim = static_cast<double>(args.q.shape[2]);
    const double slab = static_cast<double>(args.kv_b->out_features()) / heads;
    const double value = slab - (head_dim - (width - latents));
    OpSample sample;
    sample.name = prompt ? "attention_prompt" : "attention_generated";
    const double moved = rows * length * static_cast<double>(record.size_bytes());
    const double share = tokens / std::max(1.0, static_cast<double>(g.num_tokens));
    sample.bytes = moved + elements(*args.kv_b) * value_bytes(*args.kv_b) +
                   share * (bytes_of(args.q) + bytes_of(args.out));
    if (prompt) {
      const double each = rows > 0 ? tokens / rows : 0.0;
      const double pairs = rows * (each * length - each * (each - 1) / 2);
      sample.flops =
          2 * heads * pairs * (head_dim + value) + 2 * rows * length * elements(*args.kv_b);
    } else {
      sample.flops =
          2 * heads * tokens * length * (width + latents) + 2 * tokens * elements(*args.kv_b);
    }
    return sample;
  }

  OpSample experts(const char* op,
                   const Weight& weight,
                   const Weight* shared,
                   int32_t first_expert,
                   const ConstTensorView& ids,
                   double activation_bytes) const {
    const double size = elements(weight);
    OpSample sample;
    sample.name = sized(op, weight.out_features(), weight.in_features());
    double entries = static_cast<double>(ids.shape.numel());
    double different = weight.num_experts();
    if (layer_ < routing_.size()) {
      std::set<int32_t> chosen;
      entries = 0;
      for (const int32_t id : routing_[layer_]) {
        if (id >= first_expert && id < first_expert + weight.num_experts()) {
          chosen.insert(id);
          ++entries;
        }
      }
      different = static_cast<double>(chosen.size());
      sample.experts = static_cast<int32_t>(chosen.size());
    }
    if (shared != nullptr) {
      different += 1;
      entries += static_cast<double>(ids.shape[0]);
    }
    sample.bytes = different * size * value_bytes(weight) + activation_bytes;
    sample.flops = 2 * entries * size;
    return sample;
  }

  void read_routing(const TensorView& ids, Stream& stream) {
    std::vector<int32_t> host(static_cast<size_t>(ids.shape.numel()));
    backend_.copy(
        make_view(reinterpret_cast<std::byte*>(host.data()), DType::i32, ids.shape), ids, stream);
    stream.synchronize();
    routing_.push_back(std::move(host));
  }

  Backend& backend_;
  Ops& inner_;
  ProfileMode mode_ = ProfileMode::off;
  std::vector<OpSample> samples_;
  std::vector<std::unique_ptr<Event>> events_;  ///< two an op, kept for the next step
  std::vector<std::vector<int32_t>> routing_;   ///< of each MoE layer
  std::vector<ConstTensorView> expert_ids_;     ///< instead of the router's
  size_t layer_ = 0;
};

ProfilingBackend::ProfilingBackend(std::unique_ptr<Backend> inner)
    : WrappedBackend(std::move(inner)),
      ops_(std::make_unique<ProfilingOps>(this->inner(), this->inner().ops())) {}

ProfilingBackend::~ProfilingBackend() = default;

void ProfilingBackend::set_mode(ProfileMode mode) {
  ops_->set_mode(mode);
}

void ProfilingBackend::set_routing(std::vector<ConstTensorView> expert_ids) {
  ops_->set_routing(std::move(expert_ids));
}

std::vector<OpSample> ProfilingBackend::samples() const {
  return ops_->samples();
}

Ops& ProfilingBackend::ops() {
  return *ops_;
}

}  // namespace hadal
