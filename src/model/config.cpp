// The only file of the model that knows JSON. Every field is read through a typed accessor that
// checks its range, so nothing downstream multiplies unchecked sizes.
#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include <hadal/model/config.h>

namespace hadal {
namespace {

using Json = nlohmann::json;

constexpr size_t kConfigBytesMax = 4 << 20;
constexpr int kDepthMax = 32;

/// Accepts any JSON up to a depth, so that the document parser after it cannot be driven deeper.
class DepthGuard : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }

  bool boolean(bool /*value*/) override { return true; }

  bool number_integer(int64_t /*value*/) override { return true; }

  bool number_unsigned(uint64_t /*value*/) override { return true; }

  bool number_float(double /*value*/, const std::string& /*text*/) override { return true; }

  bool string(std::string& /*value*/) override { return true; }

  bool binary(binary_t& /*value*/) override { return true; }

  bool key(std::string& /*value*/) override { return true; }

  bool start_object(size_t /*count*/) override { return ++depth_ <= kDepthMax; }

  bool start_array(size_t /*count*/) override { return ++depth_ <= kDepthMax; }

  bool end_object() override { return --depth_ >= 0; }

  bool end_array() override { return --depth_ >= 0; }

  bool parse_error(size_t /*position*/,
                   const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return false;
  }

 private:
  int depth_ = 0;
};

/// Reads fields of one object; the first failure sticks and later reads return their fallback.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  const std::optional<Error>& error() const { return error_; }

  /// nullptr when absent or null.
  const Json* find(const char* name) const {
    const auto at = object_.find(name);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }

  int64_t integer(const char* name, int64_t low, int64_t high, std::optional<int64_t> fallback) {
    const Json* value = find(name);
    if (value == nullptr) {
      return fallback ? *fallback : missing(name, low);
    }
    const std::string expected =
        "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))) {
      return wrong(name, expected, *value, low);
    }
    const auto number = value->get<int64_t>();
    return number < low || number > high ? wrong(name, expected, *value, low) : number;
  }

  double real(const char* name, double low, double high, std::optional<double> fallback) {
    const Json* value = find(name);
    if (value == nullptr) {
      return fallback ? *fallback : missing(name, low);
    }
    const double number = value->is_number() ? value->get<double>() : NAN;
    return number >= low && number <= high
               ? number
               : wrong(name,
                       "a number from " + short_text(low) + " to " + short_text(high),
                       *value,
                       low);
  }

  bool boolean(const char* name, bool fallback) {
    const Json* value = find(name);
    if (value == nullptr) {
      return fallback;
    }
    return value->is_boolean() ? value->get<bool>()
                               : wrong(name, "true or false", *value, fallback);
  }

  std::string text(const char* name, std::string fallback) {
    const Json* value = find(name);
    if (value == nullptr) {
      return fallback;
    }
    return value->is_string() ? value->get<std::string>()
                              : wrong(name, "a string", *value, std::move(fallback));
  }

  void fail(ErrorCode code, std::string message) {
    if (!error_) {
      error_ = Error{code, std::move(message)};
    }
  }

  void unsupported(const std::string& name, const std::string& found, const std::string& expected) {
    fail(
        ErrorCode::unsupported,
        "config.json: " + prefix_ + name + " " + found + " is not supported, expected " + expected);
  }

  void invalid(const std::string& name, const std::string& what) {
    fail(ErrorCode::invalid_argument, "config.json: " + prefix_ + name + ": " + what);
  }

 private:
  static std::string short_text(double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", number);
    return text;
  }

  static std::string shown(const Json& value) {
    if (value.is_structured()) {
      return value.is_array() ? "an array" : "an object";
    }
    return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60);
  }

  template <class T>
  T missing(const char* name, T result) {
    invalid(name, "missing");
    return result;
  }

  template <class T>
  T wrong(const char* name, const std::string& expected, const Json& value, T result) {
    invalid(name, "expected " + expected + ", found " + shown(value));
    return result;
  }

  const Json& object_;
  std::string prefix_;
  std::optional<Error> error_;
};

constexpr int64_t kDimMax = 1 << 20;

/// Families by model_type; V3's differ in routing defaults only.
bool is_v2(const DeepseekConfig& config) {
  return config.model_type == "deepseek_v2";
}

void read_identity(FieldReader& in, DeepseekConfig& config) {
  config.model_type = in.text("model_type", "");
  if (config.model_type != "deepseek_v2" && config.model_type != "deepseek_v3" &&
      config.model_type != "kimi_k2") {
    in.unsupported(
        "model_type", "'" + config.model_type + "'", "deepseek_v2, deepseek_v3 or kimi_k2");
  }
  if (const Json* names = in.find("architectures"); names != nullptr) {
    const bool is_known =
        names->is_array() && names->size() == 1 &&
        ((*names)[0] == "DeepseekV2ForCausalLM" || (*names)[0] == "DeepseekV3ForCausalLM");
    if (!is_known) {
      in.unsupported("architectures",
                     "as given",
                     "[\"DeepseekV2ForCausalLM\"] or [\"DeepseekV3ForCausalLM\"]");
    }
  }
  if (const std::string act = in.text("hidden_act", "silu"); act != "silu") {
    in.unsupported("hidden_act", "'" + act + "'", "silu");
  }
  for (const char* name : {"attention_bias", "mlp_bias", "tie_word_embeddings"}) {
    if (in.boolean(name, false)) {
      in.unsupported(name, "true", "false");
    }
  }
  if (!in.boolean("rope_interleave", true)) {
    in.unsupported("rope_interleave", "false", "true");
  }
}

void read_dimensions(FieldReader& in, DeepseekConfig& config) {
  config.vocab_size = in.integer("vocab_size", 1, 1 << 24, {});
  config.hidden_size = in.integer("hidden_size", 1, kDimMax, {});
  config.intermediate_size = in.integer("intermediate_size", 1, kDimMax, {});
  config.num_hidden_layers = in.integer("num_hidden_layers", 1, 1024, {});
  config.num_attention_heads = in.integer("num_attention_heads", 1, 4096, {});
  const int64_t kv_heads = in.integer("num_key_value_heads", 1, 4096, config.num_attention_heads);
  if (kv_heads != config.num_attention_heads) {
    in.unsupported("num_key_value_heads", std::to_string(kv_heads), "num_attention_heads");
  }
  config.max_position_embeddings = in.integer("max_position_embeddings", 1, 1 << 28, {});
  config.rms_norm_eps = in.real("rms_norm_eps", 1e-12, 1.0, 1e-6);
  config.q_lora_rank = in.integer("q_lora_rank", 0, kDimMax, 0);
  config.kv_lora_rank = in.integer("kv_lora_rank", 1, 1 << 16, {});
  config.qk_nope_head_dim = in.integer("qk_nope_head_dim", 1, 1 << 16, {});
  config.qk_rope_head_dim = in.integer("qk_rope_head_dim", 2, 1 << 16, {});
  config.v_head_dim = in.integer("v_head_dim", 1, 1 << 16, {});
  if (config.qk_rope_head_dim % 2 != 0) {
    in.invalid("qk_rope_head_dim",
               "expected an even number, found " + std::to_string(config.qk_rope_head_dim));
  }
  config.num_nextn_predict_layers = in.integer("num_nextn_predict_layers", 0, 8, 0);
}

void read_scoring(FieldReader& in, DeepseekConfig& config) {
  const bool v2 = is_v2(config);
  const std::string scoring = in.text("scoring_func", v2 ? "softmax" : "sigmoid");
  const std::string method = in.text("topk_method", v2 ? "greedy" : "noaux_tc");
  if (scoring != "softmax" && scoring != "sigmoid") {
    in.unsupported("scoring_func", "'" + scoring + "'", "softmax or sigmoid");
  }
  config.scoring_func = scoring == "sigmoid" ? ScoringFunc::sigmoid : ScoringFunc::softmax;
  if (method == "greedy") {
    config.topk_method = TopkMethod::greedy;
  } else if (method == "group_limited_greedy") {
    config.topk_method = TopkMethod::group_limited_greedy;
  } else if (method == "noaux_tc") {
    config.topk_method = TopkMethod::noaux_tc;
  } else {
    in.unsupported("topk_method", "'" + method + "'", "greedy, group_limited_greedy or noaux_tc");
  }
  const bool biased = config.topk_method == TopkMethod::noaux_tc;
  if (biased != (config.scoring_func == ScoringFunc::sigmoid)) {
    in.unsupported("topk_method",
                   "'" + method + "' with scoring_func '" + scoring + "'",
                   "noaux_tc with sigmoid, the others with softmax");
  }
  config.norm_topk_prob = in.boolean("norm_topk_prob", !v2);
  // With softmax scores the published V2 code and the libraries that follow it disagree on whether
  // normalised weights are scaled; no published model asks for it.
  if (config.norm_topk_prob && !biased) {
    in.unsupported("norm_topk_prob", "true with softmax scores", "false");
  }
  config.routed_scaling_factor = in.real("routed_scaling_factor", 1e-6, 1e6, 1.0);
}

void read_experts(FieldReader& in, DeepseekConfig& config) {
  config.n_routed_experts = in.integer("n_routed_experts", 0, 4096, 0);
  config.first_k_dense_replace = in.integer(
      "first_k_dense_replace", 0, 1024, config.n_routed_experts > 0 && !is_v2(config) ? 3 : 0);
  if (config.n_routed_experts == 0) {
    return;
  }
  config.n_shared_experts = in.integer("n_shared_experts", 0, 64, 0);
  config.num_experts_per_tok = in.integer("num_experts_per_tok", 1, 64, {});
  config.moe_intermediate_size = in.integer("moe_intermediate_size", 1, kDimMax, {});
  if (const int64_t freq = in.integer("moe_layer_freq", 1, 1024, 1); freq != 1) {
    in.unsupported("moe_layer_freq", std::to_string(freq), "1");
  }
  read_scoring(in, config);
  config.n_group = in.integer("n_group", 1, 4096, 1);
  config.topk_group = in.integer("topk_group", 1, 4096, 1);
  if (config.topk_method == TopkMethod::greedy) {
    config.n_group = 1;
    config.topk_group = 1;
  }
  if (config.n_routed_experts % config.n_group != 0) {
    in.invalid("n_group",
               std::to_string(config.n_group) + " does not divide n_routed_experts " +
                   std::to_string(config.n_routed_experts));
    return;
  }
  const int64_t group_size = config.n_routed_experts / config.n_group;
  if (config.topk_group > config.n_group) {
    in.invalid(
        "topk_group",
        std::to_string(config.topk_group) + " exceeds n_group " + std::to_string(config.n_group));
  }
  if (config.num_experts_per_tok > group_size * config.topk_group) {
    in.invalid("num_experts_per_tok",
               std::to_string(config.num_experts_per_tok) + " exceeds the " +
                   std::to_string(group_size * config.topk_group) +
                   " experts of the chosen groups");
  }
  if (config.topk_method == TopkMethod::noaux_tc && group_size < 2) {
    in.invalid("n_group", "expected at least 2 experts a group for noaux_tc, found 1");
  }
}

/// `rope_scaling` with `rope_theta` beside it, or newer files' `rope_parameters` with both inside.
std::optional<Error> read_rope(FieldReader& in, const Json& root, DeepseekConfig& config) {
  const Json* scaling = in.find("rope_parameters");
  const char* name = scaling != nullptr ? "rope_parameters" : "rope_scaling";
  if (scaling == nullptr) {
    scaling = in.find("rope_scaling");
  }
  config.rope_theta = in.real("rope_theta", 1.0001, 1e12, 10000.0);
  if (scaling == nullptr) {
    return std::nullopt;
  }
  if (!scaling->is_object()) {
    return Error{ErrorCode::invalid_argument,
                 std::string("config.json: ") + name + ": expected an object"};
  }
  FieldReader rope(*scaling, std::string(name) + ".");
  if (rope.find("rope_theta") != nullptr && root.contains("rope_parameters")) {
    config.rope_theta = rope.real("rope_theta", 1.0001, 1e12, {});
  }
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type == "default") {
    return rope.error();
  }
  if (type != "yarn") {
    rope.unsupported("type", "'" + type + "'", "yarn or default");
    return rope.error();
  }
  YarnScaling yarn;
  yarn.factor = rope.real("factor", 1.0, 1e4, {});
  yarn.original_max_position_embeddings =
      rope.real("original_max_position_embeddings", 1.0, 1e9, {});
  yarn.beta_fast = rope.real("beta_fast", 1e-3, 1e6, 32.0);
  yarn.beta_slow = rope.real("beta_slow", 1e-3, 1e6, 1.0);
  yarn.mscale = rope.real("mscale", 0.0, 100.0, 1.0);
  yarn.mscale_all_dim = rope.real("mscale_all_dim", 0.0, 100.0, 0.0);
  for (const char* other : {"attention_factor", "truncate", "partial_rotary_factor"}) {
    if (const Json* value = rope.find(other); value != nullptr && *value != true && *value != 1.0) {
      rope.unsupported(other, "as given", "it to be absent");
    }
  }
  config.yarn = yarn;
  return rope.error();
}

std::optional<Error> read_quantization(FieldReader& in, DeepseekConfig& config) {
  const Json* quantization = in.find("quantization_config");
  if (quantization == nullptr) {
    return std::nullopt;
  }
  if (!quantization->is_object()) {
    return Error{ErrorCode::invalid_argument,
                 "config.json: quantization_config: expected an object"};
  }
  FieldReader quant(*quantization, "quantization_config.");
  const std::string method = quant.text("quant_method", "");
  if (method != "fp8") {
    quant.unsupported("quant_method", "'" + method + "'", "fp8");
  }
  if (const std::string fmt = quant.text("fmt", "e4m3"); fmt != "e4m3") {
    quant.unsupported("fmt", "'" + fmt + "'", "e4m3");
  }
  if (const std::string scheme = quant.text("activation_scheme", "dynamic"); scheme != "dynamic") {
    quant.unsupported("activation_scheme", "'" + scheme + "'", "dynamic");
  }
  const Json* block = quant.find("weight_block_size");
  if (block == nullptr || *block != Json::array({128, 128})) {
    quant.unsupported("weight_block_size", block == nullptr ? "absent" : "as given", "[128, 128]");
  }
  config.is_fp8 = true;
  return quant.error();
}

void read_eos(FieldReader& in, DeepseekConfig& config) {
  const Json* eos = in.find("eos_token_id");
  if (eos == nullptr) {
    return;
  }
  const Json list = eos->is_array() ? *eos : Json::array({*eos});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() >= config.vocab_size || config.eos_token_ids.size() == 64) {
      in.invalid("eos_token_id", "expected at most 64 token ids below vocab_size");
      return;
    }
    config.eos_token_ids.push_back(static_cast<TokenId>(id.get<int64_t>()));
  }
}

Result<DeepseekConfig> read_config(const Json& root) {
  if (!root.is_object()) {
    return Error{ErrorCode::invalid_argument, "config.json: expected a JSON object"};
  }
  DeepseekConfig config;
  FieldReader in(root, "");
  read_identity(in, config);
  read_dimensions(in, config);
  if (!in.error()) {
    read_experts(in, config);
    read_eos(in, config);
  }
  const std::optional<Error> rope_error = read_rope(in, root, config);
  const std::optional<Error> quant_error = read_quantization(in, config);
  for (const std::optional<Error>& error : {in.error(), rope_error, quant_error}) {
    if (error) {
      return *error;
    }
  }
  if (config.first_k_dense_replace > config.num_hidden_layers) {
    config.first_k_dense_replace = config.num_hidden_layers;
  }
  return config;
}

}  // namespace

Result<DeepseekConfig> parse_deepseek_config(std::string_view json) {
  if (json.size() > kConfigBytesMax) {
    return Error{ErrorCode::invalid_argument,
                 "config.json: " + std::to_string(json.size()) + " bytes, expected at most " +
                     std::to_string(kConfigBytesMax)};
  }
  try {
    DepthGuard guard;
    if (!Json::sax_parse(json.begin(), json.end(), &guard)) {
      return Error{
          ErrorCode::invalid_argument,
          "config.json: not valid JSON, or nested deeper than " + std::to_string(kDepthMax)};
    }
    return read_config(Json::parse(json.begin(), json.end()));
  } catch (const std::exception& error) {
    return Error{ErrorCode::invalid_argument, std::string("config.json: ") + error.what()};
  }
}

Result<DeepseekConfig> load_deepseek_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > kConfigBytesMax) {
    return Error{error ? ErrorCode::not_found : ErrorCode::invalid_argument,
                 path.string() + ": " +
                     (error ? error.message()
                            : std::to_string(size) + " bytes, expected at most " +
                                  std::to_string(kConfigBytesMax))};
  }
  std::string text(static_cast<size_t>(size), '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in) {
    return Error{ErrorCode::not_found, path.string() + ": cannot be read"};
  }
  auto config = parse_deepseek_config(text);
  if (!config) {
    return Error{config.error().code, directory.string() + ": " + config.error().message};
  }
  return config;
}

}  // namespace hadal
