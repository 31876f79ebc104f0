// What both readers (tokenizer.json and tiktoken.model) hand to Tokenizer, and the bounds on what
// they accept.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <hadal/base/result.h>
#include <hadal/text/token.h>

#include "tokenizer_added.h"
#include "tokenizer_bpe.h"
#include "tokenizer_split.h"

namespace hadal {

inline constexpr int64_t kTokenizerFileBytesMax = int64_t{64} << 20;
inline constexpr int64_t kTokenIdMax = (int64_t{1} << 20) - 1;
inline constexpr size_t kTokenBytesMax = 4096;

struct TokenizerParts {
  std::vector<std::string> token_bytes;  ///< by id; what each token decodes to
  std::vector<AddedToken> added;
  BpeModel::Parts bpe;                ///< without whole_pieces
  std::vector<TokenId> whole_pieces;  ///< tokens that a piece can be without merging
  PreTokenizer pre_tokenizer;
  bool limits_runs = false;      ///< cut long runs as Kimi's tokenizer does before calling tiktoken
  bool begins_with_bos = false;  ///< a TemplateProcessing post-processor starts with a token
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  bool adds_bos = false;
};

/// Errors name the field: "tokenizer.json: model.merges[3]: ...".
Result<TokenizerParts> read_tokenizer_json(std::string_view text);

/// Lines of base64 and rank; special tokens and their ids from `config` (tokenizer_config.json).
Result<TokenizerParts> read_tiktoken_model(std::string_view text, const nlohmann::json& config);

/// Adds what tokenizer_config.json says: bos, eos, add_bos_token, tokens missing from the model.
Status apply_tokenizer_config(const nlohmann::json& config, TokenizerParts* parts);

/// nlohmann's parse with bounds on depth (32) and number of values, and errors instead of
/// exceptions. `file` names the source in errors.
Result<nlohmann::json> parse_bounded_json(std::string_view text, std::string_view file);

/// The whole file; not_found if it does not exist, data_loss above `bytes_max`.
Result<std::string> read_file_bounded(const std::filesystem::path& path, int64_t bytes_max);

/// Registers an added token and its bytes; data_loss if its id means something else already.
Status register_added_token(AddedToken token, std::string_view field, TokenizerParts* parts);

/// The bytes a token's text stands for in the byte-level alphabet of GPT-2; nullopt if a character
/// is not in it.
std::optional<std::string> bytes_of_byte_level(std::string_view text);

}  // namespace hadal
