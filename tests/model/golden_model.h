// The recorded goldens of tests/data/goldens, and how a model is run along one.
#pragma once

#include <fstream>
#include <map>

#include <hadal/weights/safetensors.h>

#include "catch.h"
#include "tiny_model.h"

namespace hadal::tiny {

inline std::filesystem::path mini_directory() {
  return std::filesystem::path(HADAL_SOURCE_DIR) / "models/hadal-mini";
}

/// The arrays of one golden file.
class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
    auto header = parse_safetensors_header(std::as_bytes(std::span(bytes_)),
                                           static_cast<int64_t>(bytes_.size()));
    INFO(path);
    REQUIRE(header);
    header_ = std::move(header).value();
  }

  bool has(const std::string& name) const { return find(name) != nullptr; }

  template <class T>
  std::vector<T> array(const std::string& name) const {
    const TensorRecord* record = find(name);
    INFO(name);
    REQUIRE(record != nullptr);
    REQUIRE(stored_size(record->type) == sizeof(T));
    std::vector<T> values(static_cast<size_t>(record->end - record->begin) / sizeof(T));
    std::memcpy(values.data(), bytes_.data() + record->begin, values.size() * sizeof(T));
    return values;
  }

 private:
  const TensorRecord* find(const std::string& name) const {
    for (const TensorRecord& record : header_.tensors) {
      if (record.name == name) {
        return &record;
      }
    }
    return nullptr;
  }

  std::vector<char> bytes_;
  SafetensorsHeader header_;
};

/// Best logits with their ids and the log-sum-exp of some rows.
struct GoldenRows {
  std::vector<int32_t> ids;
  std::vector<float> logits;
  std::vector<float> lse;
  size_t top = 0;
};

inline GoldenRows read_rows(const GoldenFile& file,
                            const std::string& ids,
                            const std::string& values) {
  GoldenRows rows{file.array<int32_t>(ids + ".top_ids"),
                  file.array<float>(values + ".top_logits"),
                  file.array<float>(values + ".lse"),
                  0};
  rows.top = rows.logits.size() / rows.lse.size();
  return rows;
}

inline double log_sum_exp(const std::vector<float>& logits) {
  const double best = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float value : logits) {
    sum += std::exp(value - best);
  }
  return best + std::log(sum);
}

/// Prompt, then one token a step, as a server would: 33 rows of logits.
inline Logits generate(Harness& harness, const std::vector<int32_t>& ids, size_t num_prompt) {
  std::vector<int32_t> pages(ids.size() / kPageTokens + 1);
  for (size_t i = 0; i < pages.size(); ++i) {
    pages[i] = static_cast<int32_t>(pages.size() - i);
  }
  Logits rows;
  rows.push_back(harness
                     .run({{{ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(num_prompt)},
                            0,
                            AttentionForm::prompt,
                            pages}})
                     .back());
  for (size_t at = num_prompt; at < ids.size(); ++at) {
    rows.push_back(
        harness.run({{{ids[at]}, static_cast<int32_t>(at), AttentionForm::generated, pages}})
            .back());
  }
  return rows;
}

/// One model of the manifest.
struct GoldenModel {
  std::string name;
  nlohmann::json entry;
  DeepseekConfig config;
  std::unique_ptr<WeightStore> weights;
  GoldenFile file;
};

inline GoldenModel open_model(const std::filesystem::path& goldens,
                              const std::string& name,
                              const nlohmann::json& entry) {
  INFO(name);
  auto config = parse_deepseek_config(entry.at("config").dump());
  REQUIRE(config);
  std::unique_ptr<WeightStore> weights;
  if (entry.contains("dummy_seed")) {
    weights = make_dummy_weights(entry.at("dummy_seed").get<uint64_t>());
  } else {
    auto store = open_checkpoint(mini_directory());
    INFO((store ? std::string() : store.error().message));
    REQUIRE(store);
    weights = std::move(store).value();
  }
  return {name,
          entry,
          std::move(config).value(),
          std::move(weights),
          GoldenFile(goldens / (name + ".safetensors"))};
}

inline HarnessConfig options_for(const GoldenModel& model) {
  HarnessConfig options;
  options.num_pages = 40;
  options.max_positions =
      static_cast<int32_t>(std::min<int64_t>(2048, model.config.max_position_embeddings));
  return options;
}

/// Root mean square of the differences at the stored ids.
inline double rms_error(const Logits& found, const GoldenRows& golden) {
  double sum = 0.0;
  for (size_t i = 0; i < golden.ids.size(); ++i) {
    const double value = found[i / golden.top][static_cast<size_t>(golden.ids[i])];
    sum += (value - golden.logits[i]) * (value - golden.logits[i]);
  }
  return std::sqrt(sum / static_cast<double>(golden.ids.size()));
}

/// Rounding to E4M3 is noise that the next layers scatter: leaving out one place of rounding (the
/// emulation also rounds the latents that kv_b takes) moves the logits as far as all of it. What
/// can be held is its size: a wrong scale or a group of the wrong width changes that many times
/// over. `options` are the backend's; prompts up to `prompt_tokens_max`.
inline void check_rounding_noise(const GoldenModel& model,
                                 HarnessConfig options,
                                 size_t prompt_tokens_max) {
  options.e4m3_activations = true;
  Harness harness(model.config, *model.weights, options);
  double found_noise = 0.0;
  double golden_noise = 0.0;
  for (const auto& [prompt, facts] : model.entry.at("prompts").items()) {
    const auto num_prompt = facts.at("prompt_tokens").get<size_t>();
    if (!model.file.has(prompt + ".fp8.lse") || num_prompt > prompt_tokens_max) {
      continue;
    }
    const auto ids = model.file.array<int32_t>(prompt + ".ids");
    const GoldenRows exact = read_rows(model.file, prompt, prompt);
    const GoldenRows rounded = read_rows(model.file, prompt, prompt + ".fp8");
    found_noise += rms_error(generate(harness, ids, num_prompt), exact);
    double sum = 0.0;
    for (size_t i = 0; i < exact.logits.size(); ++i) {
      const double difference = exact.logits[i] - rounded.logits[i];
      sum += difference * difference;
    }
    golden_noise += std::sqrt(sum / static_cast<double>(exact.logits.size()));
  }
  INFO(model.name << ": noise " << found_noise << ", the emulation's " << golden_noise);
  CHECK(golden_noise > 0.0);
  CHECK(found_noise > 0.5 * golden_noise);
  CHECK(found_noise < 2.0 * golden_noise);
}

template <class Check>
void for_each_model(const Check& check) {
  const std::filesystem::path directory = HADAL_GOLDENS_DIR;
  std::ifstream in(directory / "manifest.json");
  REQUIRE(in.good());
  const nlohmann::json manifest = nlohmann::json::parse(in);
  for (const auto& [name, entry] : manifest.at("models").items()) {
    check(open_model(directory, name, entry));
  }
}

}  // namespace hadal::tiny
