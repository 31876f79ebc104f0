// The same tiny model from files: sharded safetensors that hold what the dummy generator makes must
// give the same answers on any layout, and a damaged directory must be refused with file and tensor
// named.
#include <set>

#include "catch.h"
#include "runner_driver.h"

namespace hadal::tiny {
namespace {

using Catch::Matchers::Contains;

/// A tensor of the checkpoint with its bytes.
struct FileTensor {
  WeightSpec spec;
  std::vector<std::byte> bytes;
};

/// Every tensor that a V3 config implies (without MTP), from names written down here again.
std::vector<WeightSpec> all_specs(const DeepseekConfig& c) {
  std::vector<WeightSpec> specs;
  const auto plain = [&](const std::string& name, std::vector<int64_t> shape, StoredType type) {
    const int64_t features = shape.back();
    specs.push_back({name, std::move(shape), type, features});
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    plain(name + ".weight", {out, in}, StoredType::f8_e4m3);
    specs.push_back(
        {name + ".weight_scale_inv", {(out + 127) / 128, (in + 127) / 128}, StoredType::f32, in});
  };
  const auto mlp = [&](const std::string& prefix, int64_t width) {
    linear(prefix + "gate_proj", width, c.hidden_size);
    linear(prefix + "up_proj", width, c.hidden_size);
    linear(prefix + "down_proj", c.hidden_size, width);
  };
  plain("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, StoredType::bf16);
  plain("lm_head.weight", {c.vocab_size, c.hidden_size}, StoredType::bf16);
  plain("model.norm.weight", {c.hidden_size}, StoredType::bf16);
  const int64_t heads = c.num_attention_heads;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attention = layer + "self_attn.";
    plain(layer + "input_layernorm.weight", {c.hidden_size}, StoredType::bf16);
    plain(layer + "post_attention_layernorm.weight", {c.hidden_size}, StoredType::bf16);
    linear(attention + "q_a_proj", c.q_lora_rank, c.hidden_size);
    plain(attention + "q_a_layernorm.weight", {c.q_lora_rank}, StoredType::bf16);
    linear(attention + "q_b_proj", heads * c.qk_head_dim(), c.q_lora_rank);
    linear(attention + "kv_a_proj_with_mqa", c.kv_width(), c.hidden_size);
    plain(attention + "kv_a_layernorm.weight", {c.kv_lora_rank}, StoredType::bf16);
    linear(attention + "kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
    linear(attention + "o_proj", c.hidden_size, heads * c.v_head_dim);
    if (i < c.first_k_dense_replace) {
      mlp(layer + "mlp.", c.intermediate_size);
      continue;
    }
    plain(layer + "mlp.gate.weight", {c.n_routed_experts, c.hidden_size}, StoredType::bf16);
    plain(layer + "mlp.gate.e_score_correction_bias", {c.n_routed_experts}, StoredType::f32);
    mlp(layer + "mlp.shared_experts.", c.n_shared_experts * c.moe_intermediate_size);
    for (int64_t e = 0; e < c.n_routed_experts; ++e) {
      mlp(layer + "mlp.experts." + std::to_string(e) + ".", c.moe_intermediate_size);
    }
  }
  return specs;
}

void write_shard(const std::filesystem::path& path, const std::vector<FileTensor>& tensors) {
  nlohmann::json header;
  size_t at = 0;
  for (const FileTensor& tensor : tensors) {
    header[tensor.spec.name] = {{"dtype", stored_name(tensor.spec.type)},
                                {"shape", tensor.spec.shape},
                                {"data_offsets", {at, at + tensor.bytes.size()}}};
    at += tensor.bytes.size();
  }
  const std::string text = header.dump();
  std::ofstream out(path, std::ios::binary);
  const auto size = static_cast<uint64_t>(text.size());
  out.write(reinterpret_cast<const char*>(&size), 8);
  out << text;
  for (const FileTensor& tensor : tensors) {
    out.write(reinterpret_cast<const char*>(tensor.bytes.data()),
              static_cast<std::streamsize>(tensor.bytes.size()));
  }
}

/// Three shards, a weight and its scale often in different ones. `change` may damage a tensor
/// first.
void write_checkpoint(const std::filesystem::path& directory,
                      const DeepseekConfig& config,
                      const std::function<void(FileTensor&)>& change) {
  const auto dummy = make_dummy_weights(0);
  std::vector<std::vector<FileTensor>> shards(3);
  nlohmann::json index;
  size_t number = 0;
  for (const WeightSpec& spec : all_specs(config)) {
    FileTensor tensor{spec, {}};
    const WeightSlice all = whole(spec.shape);
    tensor.bytes.resize(static_cast<size_t>(all.num_rows * all.num_cols * stored_size(spec.type)));
    REQUIRE(dummy->read(spec, all, tensor.bytes));
    change(tensor);
    const size_t shard = number++ % shards.size();
    index["weight_map"][spec.name] = std::to_string(shard) + ".safetensors";
    if (!tensor.spec.name.empty()) {
      shards[shard].push_back(std::move(tensor));
    }
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    write_shard(directory / (std::to_string(s) + ".safetensors"), shards[s]);
  }
  std::ofstream(directory / "model.safetensors.index.json") << index.dump();
}

struct DataBytes {
  int64_t tensors = 0;
  int64_t files = 0;
};

DataBytes data_bytes(const std::filesystem::path& directory) {
  DataBytes bytes;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") {
      std::ifstream in(entry.path(), std::ios::binary);
      uint64_t header = 0;
      in.read(reinterpret_cast<char*>(&header), 8);
      const auto size = static_cast<int64_t>(entry.file_size());
      bytes.files += size;
      bytes.tensors += size - 8 - static_cast<int64_t>(header);
    }
  }
  return bytes;
}

TEST_CASE("checkpoint: a model from shards answers like the dummy it was made from", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  write_checkpoint(dir.path(), config_of("v3_fp8"), [](FileTensor& tensor) {
    // Some checkpoints store the router's bias or a norm in another float type.
    if (tensor.spec.name.ends_with("model.norm.weight")) {
      std::vector<std::byte> wide(tensor.bytes.size() * 2);
      for (size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
        std::memcpy(wide.data() + 4 * i + 2, tensor.bytes.data() + 2 * i, 2);
      }
      tensor.bytes = wide;
      tensor.spec.type = StoredType::f32;
    }
  });
  for (const auto& [tp, ep] : {std::pair{1, 1}, {4, 2}}) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.load_format = LoadFormat::automatic;
    config.tp = tp;
    config.ep = ep;
    std::vector<LoadProgress> progress;
    config.progress = [&](const LoadProgress& p) { progress.push_back(p); };
    LoadReport loaded;
    config.on_loaded = [&](const LoadReport& report) { loaded = report; };
    const auto runner = make_tiny_runner(config);
    // However many ranks, each byte comes from the files once.
    CHECK(loaded.bytes_read == loaded.file_bytes);
    CHECK(loaded.file_bytes >= data_bytes(dir.path()).tensors);
    CHECK(loaded.file_bytes <= data_bytes(dir.path()).files);
    REQUIRE_FALSE(progress.empty());
    CHECK(progress.back().bytes_done >= progress.back().bytes_total);
    std::vector<Sequence> one(1);
    one[0].prompt = goldens().at("v3_fp8").at("prompt").get<std::vector<TokenId>>();
    one[0].sampling.temperature = 0.0F;
    Driver(*runner).generate(one, 24);
    CHECK(one[0].tokens() == goldens().at("v3_fp8").at("greedy").get<std::vector<TokenId>>());
  }
}

TEST_CASE("checkpoint: a pre-sharded directory answers like its source", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  for (const auto& [tp, ep] : {std::pair{1, 1}, {2, 1}, {4, 2}}) {
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.tp = tp;
    config.ep = ep;
    const ModelDirectory out("");
    const std::filesystem::path sharded = out.path() / "sharded";
    const Status written = shard_model(config, sharded);
    INFO((written ? "" : written.error().message));
    REQUIRE(written);
    config.model_dir = sharded;
    config.load_format = LoadFormat::automatic;
    LoadReport loaded;
    config.on_loaded = [&](const LoadReport& report) { loaded = report; };
    const auto runner = make_tiny_runner(config);
    CHECK(loaded.bytes_read == loaded.file_bytes);
    std::vector<Sequence> one(1);
    one[0].prompt = goldens().at("v3_fp8").at("prompt").get<std::vector<TokenId>>();
    one[0].sampling.temperature = 0.0F;
    Driver(*runner).generate(one, 24);
    CHECK(one[0].tokens() == goldens().at("v3_fp8").at("greedy").get<std::vector<TokenId>>());
    config.tp = tp == 1 ? 2 : 1;
    config.ep = 1;
    const auto other = make_model_runner(config);
    REQUIRE_FALSE(other);
    CHECK_THAT(other.error().message, Contains("was sharded for --tp " + std::to_string(tp)));
    CHECK_FALSE(shard_model(config, out.path() / "again"));
  }
}

TEST_CASE("checkpoint: damage in a pre-sharded file fails the load and is named", "[runtime]") {
  const ModelDirectory dir(config_text("v3_fp8"));
  ModelRunnerConfig config = tiny_runner_config(dir.path());
  config.tp = 2;
  const std::filesystem::path sharded = dir.path() / "sharded";
  REQUIRE(shard_model(config, sharded));
  config.model_dir = sharded;
  config.load_format = LoadFormat::automatic;
  std::fstream file(sharded / "rank-00001.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary | std::ios::ate);
  file.seekp(-1, std::ios::end);
  const auto last = static_cast<char>(file.peek() ^ 1);
  file.put(last);
  file.close();
  const auto runner = make_model_runner(config);
  REQUIRE_FALSE(runner);
  CHECK_THAT(runner.error().message, Contains("rank-00001.safetensors is damaged: bytes"));
}

TEST_CASE("checkpoint: damage is named before anything is loaded", "[runtime]") {
  const auto error_with = [](const std::function<void(FileTensor&)>& change) {
    const ModelDirectory dir(config_text("v3_fp8"));
    write_checkpoint(dir.path(), config_of("v3_fp8"), change);
    ModelRunnerConfig config = tiny_runner_config(dir.path());
    config.load_format = LoadFormat::safetensors;
    const auto plan = plan_model_memory(config, int64_t{1} << 30);
    const auto runner = make_model_runner(config);
    REQUIRE_FALSE(runner);
    REQUIRE_FALSE(plan);
    CHECK(plan.error().message == runner.error().message);
    return runner.error().message;
  };
  const std::string name = "model.layers.2.mlp.experts.5.down_proj.weight";
  CHECK_THAT(error_with([&](FileTensor& t) {
               if (t.spec.name == name) {
                 t.spec.name.clear();
               }
             }),
             Contains(".safetensors: tensor '" + name + "' is missing"));
  CHECK_THAT(
      error_with([&](FileTensor& t) {
        if (t.spec.name == name) {
          t.spec.shape = {96, 192};
        }
      }),
      Contains("tensor '" + name + "': expected F8_E4M3 [192, 96], found F8_E4M3 [96, 192]"));
  CHECK_THAT(error_with([&](FileTensor& t) {
               if (t.spec.name == name) {
                 t.spec.type = StoredType::u8;
               }
             }),
             Contains("expected F8_E4M3 [192, 96], found U8 [192, 96]"));
  CHECK_THAT(error_with([&](FileTensor& t) {
               if (t.spec.name == name + "_scale_inv") {
                 t.spec.name += "x";
               }
             }),
             Contains(name + "_scale_inv' is missing"));
}

}  // namespace
}  // namespace hadal::tiny
