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
