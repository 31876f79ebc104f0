// tokenizer_config.json: which tokens begin and end a text, whether raw prompts get BOS, and added
// tokens that tokenizer.json does not list (transformers adds those too).
#include <algorithm>
#include <charconv>

#include "tokenizer_json.h"
#include "tokenizer_parts.h"

namespace hadal {
namespace {

/// A token given as its text or as an object with `content`; null and absent are no token.
Result<std::optional<TokenId>> named_token(const JsonField& field, const TokenizerParts& parts) {
  if (field.is_absent())
    return std::optional<TokenId>();
  const JsonField content = field.value->is_object() ? field.member("content") : field;
  Result<std::string> text = content.string();
  if (!text)
    return text.error();
  for (const AddedToken& token : parts.added) {
    if (token.content == text.value())
      return std::optional(token.id);
  }
  return Error{
      ErrorCode::data_loss,
      content.path + ": expected an added token, found '" + text.value().substr(0, 64) + "'"};
}

Status add_missing_tokens(const JsonField& decoder, TokenizerParts* parts) {
  if (decoder.is_absent())
    return ok_status();
  HADAL_RETURN_IF_ERROR(decoder.require_object());
  std::vector<TokenId> known;
  for (const AddedToken& token : parts->added)
    known.push_back(token.id);
  std::sort(known.begin(), known.end());
  for (const auto& [name, value] : decoder.value->items()) {
    const JsonField item = decoder.member(name);
    int64_t id = -1;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data(), end, id);
    if (parsed.ec != std::errc() || parsed.ptr != end || id < 0 || id > kTokenIdMax)
      return item.expected("an id from 0 to " + std::to_string(kTokenIdMax) + " as its name");
    if (std::binary_search(known.begin(), known.end(), id))
      continue;
    Result<AddedToken> token = read_added_token(item, static_cast<TokenId>(id));
    if (!token)
      return token.error();
    HADAL_RETURN_IF_ERROR(register_added_token(std::move(token).value(), item.path, parts));
  }
  return ok_status();
}

}  // namespace

Status apply_tokenizer_config(const nlohmann::json& config, TokenizerParts* parts) {
  const JsonField root{&config, "tokenizer_config.json: "};
  HADAL_RETURN_IF_ERROR(root.require_object());
  HADAL_RETURN_IF_ERROR(add_missing_tokens(root.member("added_tokens_decoder"), parts));
  for (const auto& [name, target] :
       {std::pair("bos_token", &parts->bos), std::pair("eos_token", &parts->eos)}) {
    Result<std::optional<TokenId>> token = named_token(root.member(name), *parts);
    if (!token)
      return token.error();
    *target = token.value();
  }
  // transformers' Llama tokenizers add BOS unless told otherwise.
  const JsonField class_name = root.member("tokenizer_class");
  const bool is_llama = !class_name.is_absent() && class_name.value->is_string() &&
                        class_name.value->get_ref<const std::string&>().starts_with("Llama");
  Result<bool> adds_bos =
      root.member("add_bos_token").boolean_or(is_llama || parts->begins_with_bos);
  if (!adds_bos)
    return adds_bos.error();
  parts->adds_bos = adds_bos.value() && parts->bos.has_value();
  return ok_status();
}

}  // namespace hadal
