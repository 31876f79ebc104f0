// Byte-level BPE read from a model directory: text to ids and ids to bytes.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/base/result.h>
#include <hadal/text/prompt_text.h>
#include <hadal/text/token.h>

namespace hadal {

/// Whether added tokens (`<think>`, `<｜User｜>`, ...) that occur in the text become their ids.
enum class AddedTokens : uint8_t { parse, as_text };

/// Immutable after load; every const method may be called from any thread.
class Tokenizer {
 public:
  /// Reads `tokenizer.json` (Hugging Face) or, without it, `tiktoken.model` (Kimi, Moonlight) and
  /// `tokenizer_config.json`. not_found names both files when neither exists; data_loss names the
  /// field of a damaged one.
  static Result<Tokenizer> load(const std::filesystem::path& model_dir);
  /// From the text of tokenizer.json; what `load` uses and the fuzzer calls.
  static Result<Tokenizer> from_tokenizer_json(std::string_view json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// No BOS is added here. Time is linear in the length of `utf8` (bytes that are not UTF-8 are
  /// encoded as Hugging Face does after Python's `decode(errors="replace")`).
  std::vector<TokenId> encode(std::string_view utf8, AddedTokens added_tokens) const;
  /// Added tokens only outside of `prompt.content`.
  std::vector<TokenId> encode(const PromptText& prompt) const;

  /// The bytes a token stands for; empty for ids that name nothing. Lives as long as the tokenizer.
  std::string_view bytes(TokenId id) const;
  /// The id of an added token by its exact text.
  std::optional<TokenId> added_token(std::string_view text) const;
  /// An added token marked `special` (left out of decoded text, as Hugging Face's
  /// skip_special_tokens does).
  bool is_special(TokenId id) const;
  std::optional<TokenId> bos_id() const;
  std::optional<TokenId> eos_id() const;
  /// `add_bos_token` of tokenizer_config.json: raw prompts of /v1/completions get BOS.
  bool adds_bos() const;
  /// One more than the largest id that names a token.
  int32_t vocab_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

/// Turns a stream of ids into UTF-8: only whole characters leave it; bytes that can never become
/// valid leave as U+FFFD. Not thread-safe; one per sequence. Keeps a reference to the tokenizer.
class TokenDecoder {
 public:
  struct Options {
    bool skip_special_tokens = true;
  };

  explicit TokenDecoder(const Tokenizer& tokenizer, Options options);

  explicit TokenDecoder(const Tokenizer& tokenizer) : TokenDecoder(tokenizer, Options{}) {}

  /// The characters completed by this token, possibly none.
  std::string push(TokenId id);
  /// What is left at the end; an unfinished character becomes U+FFFD.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  Options options_;
  std::string pending_;
};

}  // namespace hadal
