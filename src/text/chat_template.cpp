// Finds a checkpoint's chat template and runs it with the interpreter in jinja_*.
#include <algorithm>
#include <fstream>
#include <optional>

#include <nlohmann/json.hpp>

#include <hadal/text/chat_template.h>

#include "jinja_interpreter.h"
#include "jinja_parser.h"

namespace hadal {

namespace {

constexpr int64_t kConfigBytesMax = int64_t{64} << 20;
constexpr int32_t kHeightPerDepth = 4;  // chains of filters and attributes are high but not nested

/// The file's text; nullopt if there is no such file.
Result<std::optional<std::string>> read_file(const std::filesystem::path& path, int64_t bytes_max) {
  std::error_code code;
  if (!std::filesystem::exists(path, code))
    return std::optional<std::string>{};
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, code));
  if (code)
    return Error{ErrorCode::data_loss, path.string() + ": " + code.message()};
  if (bytes > bytes_max)
    return Error{ErrorCode::data_loss,
                 path.string() + ": at most " + std::to_string(bytes_max) + " bytes, got " +
                     std::to_string(bytes)};
  std::string text(static_cast<size_t>(bytes), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes)))
    return Error{ErrorCode::data_loss, path.string() + ": cannot be read"};
  return std::optional<std::string>(std::move(text));
}

/// `chat_template` of tokenizer_config.json: a string, or a list of {name, template}.
Result<std::string> template_of(const nlohmann::json& config, const std::string& file) {
  const auto it = config.find("chat_template");
  if (it == config.end())
    return Error{ErrorCode::not_found, file + ": no chat_template"};
  if (it->is_string())
    return it->get<std::string>();
  if (it->is_array()) {
    for (const nlohmann::json& entry : *it) {
      if (!entry.is_object() || !entry.contains("name") || entry["name"] != "default")
        continue;
      const auto text = entry.find("template");
      if (text != entry.end() && text->is_string())
        return text->get<std::string>();
    }
    return Error{ErrorCode::data_loss, file + ": chat_template has no entry named 'default'"};
  }
  return Error{
      ErrorCode::data_loss,
      file + ": chat_template must be a string or a list, got " + std::string(it->type_name())};
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template parsed;
  TemplateLimits limits;
};

ChatTemplate::ChatTemplate(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, const TemplateLimits& limits) {
  auto tokens = jinja::tokenize(source);
  if (!tokens)
    return tokens.error();
  auto parsed = jinja::parse(
      tokens.value(),
      {.nesting_max = limits.depth_max, .height_max = limits.depth_max * kHeightPerDepth});
  if (!parsed)
    return parsed.error();
  return ChatTemplate(std::make_shared<const Impl>(Impl{std::move(parsed).value(), limits}));
}

Result<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_dir,
                                        const TemplateLimits& limits) {
  const std::filesystem::path jinja_path = model_dir / "chat_template.jinja";
  const std::filesystem::path config_path = model_dir / "tokenizer_config.json";
  auto own_file = read_file(jinja_path, static_cast<int64_t>(jinja::kSourceBytesMax));
  if (!own_file)
    return own_file.error();
  if (own_file.value())
    return parse(*own_file.value(), limits);
  auto config_text = read_file(config_path, kConfigBytesMax);
  if (!config_text)
    return config_text.error();
  if (!config_text.value())
    return Error{ErrorCode::not_found,
                 model_dir.string() +
                     ": no chat template: neither chat_template.jinja nor tokenizer_config.json"};
  const nlohmann::json config = nlohmann::json::parse(*config_text.value(), nullptr, false);
  if (!config.is_object())
    return Error{ErrorCode::data_loss, config_path.string() + ": not a JSON object"};
  auto source = template_of(config, config_path.string());
  if (!source)
    return source.error();
  return parse(source.value(), limits);
}

bool ChatTemplate::reads(std::string_view name) const {
  const std::vector<std::string>& names = impl_->parsed.names;
  return std::binary_search(names.begin(), names.end(), name);
}

Result<PromptText> ChatTemplate::render(const TemplateValue& context) const {
  return jinja::run(impl_->parsed, context, impl_->limits);
}

}  // namespace hadal
