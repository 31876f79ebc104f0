// tiktoken.model of Kimi-K2 and Moonlight: one line per token, base64 of its bytes and its rank.
// tiktoken merges the neighbours whose union has the lowest rank; listing every way to halve every
// token as a merge of that rank gives the same result through the common BPE.
#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "tokenizer_json.h"
#include "tokenizer_parts.h"

namespace hadal {
namespace {

constexpr size_t kRankBytesMax = 512;
constexpr int64_t kReservedTokens = 258;  // 256 and the two that the reference adds

// Runs of Han characters stay apart from other letters; contractions stay with their word.
constexpr std::string_view kHanAwarePattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

int base64_value(char c) {
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const size_t at = kAlphabet.find(c);
  return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0)
    return std::nullopt;
  for (int i = 0; i < 2 && text.back() == '='; ++i)
    text.remove_suffix(1);
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0)
      return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes += static_cast<char>(bits >> count & 0xFFU);
    }
  }
  return bytes;
}

Error line_error(int64_t line, const std::string& why) {
  return {ErrorCode::data_loss, "tiktoken.model: line " + std::to_string(line) + ": " + why};
}

Status read_line(std::string_view line, int64_t number, TokenizerParts* parts) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos)
    return line_error(number, "expected base64, a space and a rank");
  const std::optional<std::string> bytes = decode_base64(line.substr(0, space));
  if (!bytes || bytes->empty() || bytes->size() > kRankBytesMax)
    return line_error(number,
                      "expected base64 of 1 to " + std::to_string(kRankBytesMax) + " bytes");
  int64_t rank = -1;
  const char* end = line.data() + line.size();
  const auto parsed = std::from_chars(line.data() + space + 1, end, rank);
  if (parsed.ec != std::errc() || parsed.ptr != end || rank < 0 || rank > kTokenIdMax)
    return line_error(number, "expected a rank from 0 to " + std::to_string(kTokenIdMax));
  const auto at = static_cast<size_t>(rank);
  if (at >= parts->token_bytes.size())
    parts->token_bytes.resize(at + 1);
  if (!parts->token_bytes[at].empty())
    return line_error(number, "rank " + std::to_string(rank) + " is used twice");
  parts->token_bytes[at] = *bytes;
  if (bytes->size() == 1)
    parts->bpe.byte_ids[static_cast<uint8_t>((*bytes)[0])] = static_cast<TokenId>(rank);
  return ok_status();
}

Status read_ranks(std::string_view text, TokenizerParts* parts) {
  parts->bpe.byte_ids.fill(-1);
  int64_t number = 0;
  int64_t count = 0;
  while (!text.empty()) {
    const size_t newline = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    ++number;
    if (line.ends_with('\r'))
      line.remove_suffix(1);
    if (line.empty())
      continue;
    HADAL_RETURN_IF_ERROR(read_line(line, number, parts));
    ++count;
  }
  if (count != static_cast<int64_t>(parts->token_bytes.size()))
    return line_error(number,
                      "expected every rank from 0 to " +
                          std::to_string(parts->token_bytes.size() - 1) + ", found " +
                          std::to_string(count));
  for (size_t byte = 0; byte < 256; ++byte) {
    if (parts->bpe.byte_ids.at(byte) < 0)
      return line_error(number, "expected a token for byte " + std::to_string(byte));
  }
  return ok_status();
}

Status derive_merges(TokenizerParts* parts) {
  std::unordered_map<std::string_view, TokenId> index;
  index.reserve(parts->token_bytes.size());
  for (size_t id = 0; id < parts->token_bytes.size(); ++id) {
    if (!index.emplace(parts->token_bytes[id], static_cast<TokenId>(id)).second) {
      return Error{ErrorCode::data_loss,
                   "tiktoken.model: rank " + std::to_string(id) + " repeats an earlier token"};
    }
    parts->whole_pieces.push_back(static_cast<TokenId>(id));
  }
  for (size_t id = 0; id < parts->token_bytes.size(); ++id) {
    const std::string_view bytes = parts->token_bytes[id];
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = index.find(bytes.substr(0, cut));
      const auto right = index.find(bytes.substr(cut));
      if (left == index.end() || right == index.end())
        continue;
      const auto rank = static_cast<int32_t>(id);
      parts->bpe.merges.push_back({left->second, right->second, rank, rank});
    }
  }
  return ok_status();
}

/// The ids behind the ranks: named by added_tokens_decoder, else reserved under a made-up name.
Status read_special_tokens(const nlohmann::json& config, TokenizerParts* parts) {
  const auto base = static_cast<int64_t>(parts->token_bytes.size());
  const JsonField decoder =
      JsonField{&config, "tokenizer_config.json: "}.member("added_tokens_decoder");
  for (int64_t id = base; id < base + kReservedTokens; ++id) {
    const JsonField item = decoder.member(std::to_string(id));
    AddedToken token;
    token.id = static_cast<TokenId>(id);
    token.content = "<|reserved_token_" + std::to_string(id) + "|>";
    if (!item.is_absent()) {
      Result<AddedToken> named = read_added_token(item, token.id);
      if (!named)
        return named.error();
      token = std::move(named).value();
      token.is_normalized = token.strips_left = token.strips_right = false;  // as tiktoken does
    }
    HADAL_RETURN_IF_ERROR(register_added_token(std::move(token), item.path, parts));
  }
  return ok_status();
}

}  // namespace

Result<TokenizerParts> read_tiktoken_model(std::string_view text, const nlohmann::json& config) {
  TokenizerParts parts;
  HADAL_RETURN_IF_ERROR(read_ranks(text, &parts));
  HADAL_RETURN_IF_ERROR(derive_merges(&parts));
  HADAL_RETURN_IF_ERROR(read_special_tokens(config, &parts));
  Result<std::string> pattern = translate_oniguruma(kHanAwarePattern);
  HADAL_CHECK(static_cast<bool>(pattern), "the built-in pattern must translate");
  Result<Regex> regex = Regex::compile(pattern.value());
  if (!regex)
    return regex.error();
  std::vector<SplitStage> stages;
  stages.push_back({std::move(regex).value()});
  parts.pre_tokenizer = PreTokenizer(std::move(stages));
  parts.limits_runs = true;
  return parts;
}

}  // namespace hadal
