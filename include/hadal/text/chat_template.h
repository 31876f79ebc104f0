// The checkpoint's own Jinja chat template, run by a small interpreter with limits.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include <hadal/base/result.h>
#include <hadal/text/prompt_text.h>
#include <hadal/text/template_value.h>

namespace hadal {

/// Bounds on one render; breaching one is an invalid_argument error, never a hang.
struct TemplateLimits {
  int32_t depth_max = 64;               ///< nested expressions, blocks and macro calls
  int64_t steps_max = 20'000'000;       ///< evaluated nodes and copied bytes / 16
  int64_t output_bytes_max = 64 << 20;  ///< length of the rendered prompt
};

/// Immutable after parse; `render` may be called from any thread.
class ChatTemplate {
 public:
  /// invalid_argument with line and column for syntax the interpreter does not have.
  static Result<ChatTemplate> parse(std::string_view source, const TemplateLimits& limits = {});
  /// `chat_template.jinja` if present, else `chat_template` of tokenizer_config.json (a string, or
  /// a list with "default").
  static Result<ChatTemplate> load(const std::filesystem::path& model_dir,
                                   const TemplateLimits& limits = {});

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// `context` is an object: messages, tools, add_generation_prompt, bos_token, eos_token and extra
  /// variables
  /// (`chat_template_kwargs`). Renders as Hugging Face's apply_chat_template does (trim_blocks,
  /// lstrip_blocks, tojson without ASCII escapes). A raise_exception() call in the template is
  /// invalid_argument with its message.
  Result<PromptText> render(const TemplateValue& context) const;
  /// Whether the template reads the variable `name` anywhere (`tools`, `thinking`, ...).
  bool reads(std::string_view name) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace hadal
