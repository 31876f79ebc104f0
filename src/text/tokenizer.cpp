// The public tokenizer: load, encode (replace ill-formed bytes, cut added tokens, pre-tokenise,
// merge) and the token tables.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include <nlohmann/json.hpp>

#include <hadal/text/tokenizer.h>

#include "tokenizer_json.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include "utf8.h"

namespace hadal {
namespace {

// How Kimi's tokenizer cuts what it passes to tiktoken, in characters.
constexpr int64_t kChunkCharactersMax = 400'000;
constexpr int64_t kRunCharactersMax = 25'000;

/// str.isspace() of Python.
bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

/// Ranges of at most kChunkCharactersMax characters, further cut where a run of only space or only
/// other characters passes kRunCharactersMax.
std::vector<ByteRange> limited_ranges(std::string_view text) {
  const auto size = static_cast<int64_t>(text.size());
  if (size <= kRunCharactersMax)
    return {{0, size}};
  std::vector<ByteRange> ranges;
  int64_t begin = 0;
  int64_t chunk_characters = 0;
  int64_t run_characters = 0;
  bool is_space_run = false;
  for (int64_t at = 0; at < size;) {
    const Utf8Unit unit = next_utf8_unit(text.substr(static_cast<size_t>(at)));
    const bool is_space = is_python_space(unit.code_point);
    if (chunk_characters == kChunkCharactersMax) {
      ranges.push_back({begin, at});
      begin = at;
      chunk_characters = run_characters = 0;
    }
    if (run_characters > 0 && is_space == is_space_run) {
      if (++run_characters > kRunCharactersMax) {
        ranges.push_back({begin, at});
        begin = at;
        run_characters = 1;
      }
    } else {
      is_space_run = is_space;
      run_characters = 1;
    }
    ++chunk_characters;
    at += unit.length;
  }
  ranges.push_back({begin, size});
  return ranges;
}

BpeModel make_bpe(TokenizerParts* parts, const std::vector<std::string>& token_bytes) {
  for (const TokenId id : parts->whole_pieces)
    parts->bpe.whole_pieces.emplace(token_bytes[static_cast<size_t>(id)], id);
  return BpeModel(std::move(parts->bpe));
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts parts);

  std::vector<TokenId> encode(std::string_view valid,
                              bool parses_added,
                              const std::vector<ByteRange>& content) const;

  std::vector<std::string> token_bytes;
  std::vector<bool> is_special;
  std::unordered_map<std::string, TokenId> added_ids;
  AddedTokenSet added;
  BpeModel bpe;
  PreTokenizer pre_tokenizer;
  bool limits_runs;
  bool adds_bos;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
};

Tokenizer::Impl::Impl(TokenizerParts parts)
    : token_bytes(std::move(parts.token_bytes)),
      is_special(token_bytes.size()),
      added(parts.added),
      bpe(make_bpe(&parts, token_bytes)),
      pre_tokenizer(std::move(parts.pre_tokenizer)),
      limits_runs(parts.limits_runs),
      adds_bos(parts.adds_bos),
      bos(parts.bos),
      eos(parts.eos) {
  for (const AddedToken& token : parts.added) {
    is_special[static_cast<size_t>(token.id)] = token.is_special;
    added_ids.emplace(token.content, token.id);
  }
}

std::vector<TokenId> Tokenizer::Impl::encode(std::string_view valid,
                                             bool parses_added,
                                             const std::vector<ByteRange>& content) const {
  std::vector<TokenId> ids;
  ids.reserve(valid.size() / 3 + 16);
  const auto size = static_cast<int64_t>(valid.size());
  const std::vector<ByteRange> ranges =
      limits_runs ? limited_ranges(valid) : std::vector<ByteRange>{{0, size}};
  std::string storage;
  const std::string_view shadow = shadow_for_matching(valid, &storage);
  RegexScratch scratch;
  for (const ByteRange& range : ranges) {
    std::vector<TextSegment> segments = {{range.begin, range.end, -1}};
    if (parses_added)
      segments = added.cut(valid, range, content);
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
        continue;
      }
      const auto begin = static_cast<size_t>(segment.begin);
      const auto length = static_cast<size_t>(segment.end) - begin;
      for (const auto& piece : pre_tokenizer.split(shadow.substr(begin, length), &scratch))
        bpe.encode(valid.substr(begin + piece.begin, piece.end - piece.begin), &ids);
    }
  }
  return ids;
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::from_tokenizer_json(std::string_view json) {
  Result<TokenizerParts> parts = read_tokenizer_json(json);
  if (!parts)
    return parts.error();
  return Tokenizer(std::make_unique<Impl>(std::move(parts).value()));
}

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& model_dir) {
  const std::filesystem::path config_path = model_dir / "tokenizer_config.json";
  const auto in_directory = [&](const Error& error) {
    return Error{error.code, model_dir.string() + ": " + error.message};
  };
  nlohmann::json config = nlohmann::json::object();
  std::error_code code;
  if (std::filesystem::exists(config_path, code)) {
    Result<std::string> text = read_file_bounded(config_path, kTokenizerFileBytesMax);
    if (!text)
      return text.error();
    Result<nlohmann::json> parsed = parse_bounded_json(text.value(), "tokenizer_config.json");
    if (!parsed)
      return in_directory(parsed.error());
    config = std::move(parsed).value();
  }
  const bool has_json = std::filesystem::exists(model_dir / "tokenizer.json", code);
  if (!has_json && !std::filesystem::exists(model_dir / "tiktoken.model", code)) {
    return Error{ErrorCode::not_found,
                 model_dir.string() + ": expected tokenizer.json or tiktoken.model, found neither"};
  }
  Result<std::string> text = read_file_bounded(
      model_dir / (has_json ? "tokenizer.json" : "tiktoken.model"), kTokenizerFileBytesMax);
  if (!text)
    return text.error();
  Result<TokenizerParts> parts =
      has_json ? read_tokenizer_json(text.value()) : read_tiktoken_model(text.value(), config);
  if (!parts)
    return in_directory(parts.error());
  if (Status applied = apply_tokenizer_config(config, &parts.value()); !applied)
    return in_directory(applied.error());
  return Tokenizer(std::make_unique<Impl>(std::move(parts).value()));
}

std::vector<TokenId> Tokenizer::encode(std::string_view utf8, AddedTokens added_tokens) const {
  const bool parses_added = added_tokens == AddedTokens::parse;
  if (valid_utf8_prefix(utf8) == utf8.size())
    return impl_->encode(utf8, parses_added, {});
  return impl_->encode(replace_ill_formed(utf8), parses_added, {});
}

std::vector<TokenId> Tokenizer::encode(const PromptText& prompt) const {
  const auto size = static_cast<int64_t>(prompt.text.size());
  const bool is_valid = valid_utf8_prefix(prompt.text) == prompt.text.size();
  std::vector<int64_t> offsets;
  for (const ByteRange& range : prompt.content) {
    const bool is_ordered = range.begin >= (offsets.empty() ? 0 : offsets.back());
    HADAL_CHECK(is_ordered && range.begin <= range.end && range.end <= size,
                "content ranges must be sorted, disjoint and inside the text");
    if (range.begin < range.end)
      offsets.insert(offsets.end(), {range.begin, range.end});
  }
  std::string replaced;
  if (!is_valid)
    replaced = replace_ill_formed(prompt.text, &offsets);
  std::vector<ByteRange> content;
  for (size_t i = 0; i < offsets.size(); i += 2)
    content.push_back({offsets[i], offsets[i + 1]});
  return impl_->encode(is_valid ? prompt.text : replaced, true, content);
}

std::string_view Tokenizer::bytes(TokenId id) const {
  const auto at = static_cast<size_t>(id);
  return id < 0 || at >= impl_->token_bytes.size() ? std::string_view() : impl_->token_bytes[at];
}

std::optional<TokenId> Tokenizer::added_token(std::string_view text) const {
  const auto found = impl_->added_ids.find(std::string(text));
  return found == impl_->added_ids.end() ? std::nullopt : std::optional(found->second);
}

bool Tokenizer::is_special(TokenId id) const {
  const auto at = static_cast<size_t>(id);
  return id >= 0 && at < impl_->is_special.size() && impl_->is_special[at];
}

std::optional<TokenId> Tokenizer::bos_id() const {
  return impl_->bos;
}

std::optional<TokenId> Tokenizer::eos_id() const {
  return impl_->eos;
}

bool Tokenizer::adds_bos() const {
  return impl_->adds_bos;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->token_bytes.size());
}

TokenDecoder::TokenDecoder(const Tokenizer& tokenizer, Options options)
    : tokenizer_(&tokenizer), options_(options) {}

std::string TokenDecoder::push(TokenId id) {
  if (options_.skip_special_tokens && tokenizer_->is_special(id))
    return {};
  pending_ += tokenizer_->bytes(id);
  return take_decided_utf8(&pending_);
}

std::string TokenDecoder::flush() {
  return replace_ill_formed(std::exchange(pending_, {}));
}

}  // namespace hadal
