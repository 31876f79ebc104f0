// tokenizer.json of Hugging Face's `tokenizers`: byte-level BPE and the parts that go with it. What
// would change the ids and is not implemented is refused by name, never ignored.
#include "tokenizer_json.h"

#include <array>
#include <unordered_map>

#include "tokenizer_parts.h"
#include "utf8.h"

namespace hadal {
namespace {

constexpr size_t kStagesMax = 64;
constexpr int kSequenceDepthMax = 4;
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

using VocabIndex = std::unordered_map<std::string_view, TokenId>;

/// Code point of the byte-level alphabet to byte, -1 for the rest: printable Latin-1 stands for
/// itself, the other bytes follow from U+0100 on.
const std::array<int16_t, 0x180>& byte_alphabet() {
  static const std::array<int16_t, 0x180> table = [] {
    std::array<int16_t, 0x180> bytes;
    bytes.fill(-1);
    size_t next = 0x100;
    for (size_t byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      bytes.at(is_printable ? byte : next++) = static_cast<int16_t>(byte);
    }
    return bytes;
  }();
  return table;
}

/// A field that must be absent, null, false, 0 or "".
Status require_unset(const JsonField& field) {
  if (field.is_absent() || *field.value == false || *field.value == "")
    return ok_status();
  if (field.value->is_number() && *field.value == 0)
    return ok_status();
  return field.refused("not supported: expected to be unset");
}

Result<std::string> type_of(const JsonField& field) {
  HADAL_RETURN_IF_ERROR(field.require_object());
  return field.member("type").string();
}

Status read_vocab(const JsonField& field, VocabIndex* index, TokenizerParts* parts) {
  HADAL_RETURN_IF_ERROR(field.require_object());
  std::vector<bool> is_used;
  index->reserve(field.value->size());
  for (const auto& [text, id_value] : field.value->items()) {
    const bool is_small = id_value.is_number_integer() && id_value >= 0 && id_value <= kTokenIdMax;
    if (!is_small || text.size() > 2 * kTokenBytesMax) {
      const JsonField entry = field.member(text);
      if (!is_small)
        return entry.integer(0, kTokenIdMax).error();
      return entry.refused("a token of " + std::to_string(text.size()) + " bytes");
    }
    const auto at = id_value.get<size_t>();
    if (at >= is_used.size()) {
      is_used.resize(at + 1);
      parts->token_bytes.resize(at + 1);
    }
    if (is_used[at]) {
      return Error{ErrorCode::data_loss,
                   field.member(text).path + ": id " + std::to_string(at) + " is used twice"};
    }
    is_used[at] = true;
    index->emplace(text, static_cast<TokenId>(at));
    if (std::optional<std::string> bytes = bytes_of_byte_level(text)) {
      if (bytes->size() == 1)
        parts->bpe.byte_ids[static_cast<uint8_t>((*bytes)[0])] = static_cast<TokenId>(at);
      parts->token_bytes[at] = *std::move(bytes);
      parts->whole_pieces.push_back(static_cast<TokenId>(at));
    } else {
      parts->token_bytes[at] = text;
    }
  }
  return ok_status();
}

/// The two halves of a merge, written "a b" or ["a", "b"].
Result<std::pair<std::string_view, std::string_view>> merge_halves(const JsonField& field) {
  if (field.value->is_string()) {
    const std::string_view text = field.value->get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
      return field.expected("two tokens separated by one space");
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  if (!field.value->is_array() || field.value->size() != 2 || !(*field.value)[0].is_string() ||
      !(*field.value)[1].is_string())
    return field.expected("a string \"a b\" or an array of two strings");
  return std::pair<std::string_view, std::string_view>(
      (*field.value)[0].get_ref<const std::string&>(),
      (*field.value)[1].get_ref<const std::string&>());
}

Status read_merges(const JsonField& field, const VocabIndex& index, TokenizerParts* parts) {
  HADAL_RETURN_IF_ERROR(field.require_array());
  const size_t count = field.value->size();
  parts->bpe.merges.reserve(count);
  const auto id_of = [&](std::string_view text) {
    const auto found = index.find(text);
    return found == index.end() ? TokenId{-1} : found->second;
  };
  std::string joined;
  for (size_t i = 0; i < count; ++i) {
    const nlohmann::json& value = (*field.value)[i];
    if (value.is_string() && value.get_ref<const std::string&>().starts_with("#version"))
      continue;
    auto halves = merge_halves({&value, field.path});
    if (!halves)
      return Error{halves.error().code,
                   field.element(i).path + halves.error().message.substr(field.path.size())};
    const auto [left, right] = halves.value();
    joined.assign(left).append(right);
    const BpeMerge merge{
        id_of(left), id_of(right), id_of(joined), static_cast<int32_t>(parts->bpe.merges.size())};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0) {
      return Error{ErrorCode::data_loss,
                   field.element(i).path + ": expected both halves and their union in model.vocab"};
    }
    parts->bpe.merges.push_back(merge);
  }
  return ok_status();
}

Status read_model(const JsonField& model, VocabIndex* index, TokenizerParts* parts) {
  HADAL_RETURN_IF_ERROR(model.require_object());
  const JsonField type = model.member("type");
  if (!type.is_absent() && *type.value != "BPE")
    return type.refused("only BPE is supported");
  for (const char* name : {"dropout",
                           "unk_token",
                           "continuing_subword_prefix",
                           "end_of_word_suffix",
                           "fuse_unk",
                           "byte_fallback"})
    HADAL_RETURN_IF_ERROR(require_unset(model.member(name)));
  parts->bpe.byte_ids.fill(-1);
  HADAL_RETURN_IF_ERROR(read_vocab(model.member("vocab"), index, parts));
  HADAL_RETURN_IF_ERROR(read_merges(model.member("merges"), *index, parts));
  Result<bool> ignores_merges = model.member("ignore_merges").boolean_or(false);
  if (!ignores_merges)
    return ignores_merges.error();
  if (!ignores_merges.value())
    parts->whole_pieces.clear();
  return ok_status();
}

Result<SplitBehavior> read_behavior(const JsonField& field) {
  Result<std::string> name = field.string();
  if (!name)
    return name.error();
  if (name.value() == "Isolated")
    return SplitBehavior::isolated;
  if (name.value() == "Removed")
    return SplitBehavior::removed;
  if (name.value() == "MergedWithPrevious")
    return SplitBehavior::merged_with_previous;
  if (name.value() == "MergedWithNext")
    return SplitBehavior::merged_with_next;
  if (name.value() == "Contiguous")
    return SplitBehavior::contiguous;
  return field.refused("behavior '" + name.value().substr(0, 32) + "' is not supported");
}

Result<SplitStage> make_stage(std::string_view pattern, const JsonField& field) {
  Result<Regex> regex = Regex::compile(pattern);
  if (!regex)
    return Error{ErrorCode::data_loss, field.path + ": " + regex.error().message};
  return SplitStage{std::move(regex).value()};
}

Result<SplitStage> read_split(const JsonField& field) {
  const JsonField pattern = field.member("pattern");
  HADAL_RETURN_IF_ERROR(pattern.require_object());
  const bool is_literal = !pattern.member("String").is_absent();
  const JsonField text_field = pattern.member(is_literal ? "String" : "Regex");
  Result<std::string> text = text_field.string();
  if (!text)
    return text.error();
  if (is_literal) {
    std::string escaped;
    for (const char c : text.value()) {
      if (static_cast<uint8_t>(c) < 0x80 && !std::isalnum(static_cast<uint8_t>(c)))
        escaped += '\\';
      escaped += c;
    }
    text = std::move(escaped);
  }
  Result<std::string> translated = translate_oniguruma(text.value());
  if (!translated)
    return Error{translated.error().code, text_field.path + ": " + translated.error().message};
  Result<SplitStage> stage = make_stage(translated.value(), text_field);
  if (!stage)
    return stage;
  Result<SplitBehavior> behavior = read_behavior(field.member("behavior"));
  if (!behavior)
    return behavior.error();
  Result<bool> is_inverted = field.member("invert").boolean_or(false);
  if (!is_inverted)
    return is_inverted.error();
  stage.value().behavior = behavior.value();
  stage.value().is_inverted = is_inverted.value();
  return stage;
}

Result<SplitStage> read_digits(const JsonField& field) {
  Result<bool> is_individual = field.member("individual_digits").boolean_or(false);
  if (!is_individual)
    return is_individual.error();
  Result<SplitStage> stage = make_stage("\\p{N}", field);
  if (stage && !is_individual.value())
    stage.value().behavior = SplitBehavior::contiguous;
  return stage;
}

/// The pre-tokenisers in order, sequences flattened.
Status flatten(const JsonField& field, int depth, std::vector<JsonField>* out) {
  Result<std::string> type = type_of(field);
  if (!type)
    return type.error();
  if (type.value() != "Sequence") {
    if (out->size() == kStagesMax)
      return field.refused("more than 64 pre-tokenizers");
    out->push_back(field);
    return ok_status();
  }
  if (depth == kSequenceDepthMax)
    return field.refused("Sequence nested too deeply");
  const JsonField list = field.member("pretokenizers");
  HADAL_RETURN_IF_ERROR(list.require_array());
  for (size_t i = 0; i < list.value->size(); ++i)
    HADAL_RETURN_IF_ERROR(flatten(list.element(i), depth + 1, out));
  return ok_status();
}

Status read_pre_tokenizer(const JsonField& field, TokenizerParts* parts) {
  std::vector<JsonField> fields;
  HADAL_RETURN_IF_ERROR(flatten(field, 0, &fields));
  std::vector<SplitStage> stages;
  bool has_byte_level = false;
  for (const JsonField& stage_field : fields) {
    const std::string type = type_of(stage_field).value();
    if (has_byte_level)
      return stage_field.refused("expected ByteLevel to be the last pre-tokenizer");
    Result<SplitStage> stage = Error{};
    if (type == "Split") {
      stage = read_split(stage_field);
    } else if (type == "Digits") {
      stage = read_digits(stage_field);
    } else if (type == "ByteLevel") {
      has_byte_level = true;
      HADAL_RETURN_IF_ERROR(require_unset(stage_field.member("add_prefix_space")));
      Result<bool> uses_regex = stage_field.member("use_regex").boolean_or(true);
      if (!uses_regex)
        return uses_regex.error();
      if (!uses_regex.value())
        continue;
      stage = make_stage(kGpt2Pattern, stage_field);
    } else {
      return stage_field.member("type").refused("'" + type.substr(0, 32) + "' is not supported");
    }
    if (!stage)
      return stage.error();
    stages.push_back(std::move(stage).value());
  }
  if (!has_byte_level)
    return field.refused("only byte-level tokenizers are supported: expected a ByteLevel");
  parts->pre_tokenizer = PreTokenizer(std::move(stages));
  return ok_status();
}

Status read_added_tokens(const JsonField& field, const VocabIndex& index, TokenizerParts* parts) {
  if (field.is_absent())
    return ok_status();
  HADAL_RETURN_IF_ERROR(field.require_array());
  for (size_t i = 0; i < field.value->size(); ++i) {
    const JsonField item = field.element(i);
    HADAL_RETURN_IF_ERROR(item.require_object());
    Result<int64_t> id = item.member("id").integer(0, kTokenIdMax);
    if (!id)
      return id.error();
    Result<AddedToken> token = read_added_token(item, static_cast<TokenId>(id.value()));
    if (!token)
      return token.error();
    const auto in_vocab = index.find(token.value().content);
    if (in_vocab != index.end() && in_vocab->second != token.value().id) {
      return Error{ErrorCode::data_loss,
                   item.path + ".id: expected " + std::to_string(in_vocab->second) +
                       " as in model.vocab, found " + std::to_string(token.value().id)};
    }
    HADAL_RETURN_IF_ERROR(register_added_token(std::move(token).value(), item.path, parts));
  }
  return ok_status();
}

/// A component of type `allowed` ("": none is), or a Sequence of such under `list_name`.
Status require_only(const JsonField& field, std::string_view allowed, const char* list_name) {
  Result<std::string> type = type_of(field);
  if (!type)
    return type.error();
  const auto check = [&](const JsonField& item, const std::string& name) -> Status {
    if (!allowed.empty() && name == allowed)
      return ok_status();
    return item.member("type").refused("'" + name.substr(0, 32) + "' is not supported");
  };
  if (type.value() != "Sequence")
    return check(field, type.value());
  const JsonField list = field.member(list_name);
  HADAL_RETURN_IF_ERROR(list.require_array());
  for (size_t i = 0; i < list.value->size(); ++i) {
    Result<std::string> inner = type_of(list.element(i));
    if (!inner)
      return inner.error();
    HADAL_RETURN_IF_ERROR(check(list.element(i), inner.value()));
  }
  return ok_status();
}

}  // namespace

std::optional<std::string> bytes_of_byte_level(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = next_utf8_unit(text.substr(at));
    at += unit.length;
    const auto& alphabet = byte_alphabet();
    if (unit.code_point >= alphabet.size() || alphabet[unit.code_point] < 0)
      return std::nullopt;
    bytes += static_cast<char>(alphabet[unit.code_point]);
  }
  return bytes;
}

Status register_added_token(AddedToken token, std::string_view field, TokenizerParts* parts) {
  const auto at = static_cast<size_t>(token.id);
  const auto fail = [&](const std::string& why) {
    return Error{ErrorCode::data_loss, std::string(field) + ": " + why};
  };
  if (token.content.empty() || token.content.size() > kTokenBytesMax)
    return fail("expected content of 1 to " + std::to_string(kTokenBytesMax) + " bytes");
  const std::string bytes = bytes_of_byte_level(token.content).value_or(token.content);
  if (at >= parts->token_bytes.size())
    parts->token_bytes.resize(at + 1);
  std::string& known = parts->token_bytes[at];
  if (!known.empty() && known != bytes)
    return fail("id " + std::to_string(token.id) + " already names another token");
  known = bytes;
  parts->added.push_back(std::move(token));
  return ok_status();
}

Result<AddedToken> read_added_token(const JsonField& item, TokenId id) {
  HADAL_RETURN_IF_ERROR(item.require_object());
  HADAL_RETURN_IF_ERROR(require_unset(item.member("single_word")));
  Result<std::string> content = item.member("content").string();
  if (!content)
    return content.error();
  AddedToken token;
  token.id = id;
  token.content = std::move(content).value();
  const std::pair<const char*, bool*> flags[] = {{"special", &token.is_special},
                                                 {"normalized", &token.is_normalized},
                                                 {"lstrip", &token.strips_left},
                                                 {"rstrip", &token.strips_right}};
  for (const auto& [name, target] : flags) {
    Result<bool> flag = item.member(name).boolean_or(false);
    if (!flag)
      return flag.error();
    *target = flag.value();
  }
  return token;
}

Result<TokenizerParts> read_tokenizer_json(std::string_view text) {
  Result<nlohmann::json> json = parse_bounded_json(text, "tokenizer.json");
  if (!json)
    return json.error();
  const JsonField root{&json.value(), "tokenizer.json: "};
  HADAL_RETURN_IF_ERROR(root.require_object());
  TokenizerParts parts;
  VocabIndex index;  // keys live in `json`
  HADAL_RETURN_IF_ERROR(read_model(root.member("model"), &index, &parts));
  HADAL_RETURN_IF_ERROR(read_added_tokens(root.member("added_tokens"), index, &parts));
  if (const JsonField normalizer = root.member("normalizer"); !normalizer.is_absent())
    HADAL_RETURN_IF_ERROR(require_only(normalizer, "", "normalizers"));
  HADAL_RETURN_IF_ERROR(read_pre_tokenizer(root.member("pre_tokenizer"), &parts));
  HADAL_RETURN_IF_ERROR(require_only(root.member("decoder"), "ByteLevel", "decoders"));
  // Truncation and padding are left alone: transformers resets both on every call. So are
  // post-processors, which only add tokens around a text; hadal adds BOS by adds_bos().
  const JsonField single = root.member("post_processor").member("single");
  if (!single.is_absent() && single.value->is_array() && !single.value->empty())
    parts.begins_with_bos = !single.element(0).member("SpecialToken").is_absent();
  return parts;
}

}  // namespace hadal
