// Compares hadal's tokenizer with recorded results of Hugging Face's: ids with added tokens, ids
// without, and decoded text, in one go and token by token. A run that compares too little fails.
// usage: text_exactness TOKENIZER_JSON VECTORS STRINGS_MIN STRINGS_PER_CLASS_MIN
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <hadal/text/tokenizer.h>

namespace {

using hadal::AddedTokens;
using hadal::TokenId;

std::optional<std::string> read_file(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

struct Case {
  std::string name;
  std::string text;
  std::vector<TokenId> parsed;
  std::vector<TokenId> plain;
  std::string decoded;
};

class Reader {
 public:
  explicit Reader(std::string_view data) : data_(data) {}

  bool at_end() const { return data_.empty(); }

  bool is_broken() const { return is_broken_; }

  std::string record() {
    uint32_t size = 0;
    if (data_.size() >= sizeof size)
      std::memcpy(&size, data_.data(), sizeof size);
    if (data_.size() < sizeof size || data_.size() - sizeof size < size) {
      is_broken_ = true;
      data_ = {};
      return {};
    }
    std::string out(data_.substr(sizeof size, size));
    data_.remove_prefix(sizeof size + size);
    return out;
  }

  std::vector<TokenId> ids() {
    const std::string bytes = record();
    std::vector<TokenId> out(bytes.size() / sizeof(TokenId));
    if (!out.empty())
      std::memcpy(out.data(), bytes.data(), out.size() * sizeof(TokenId));
    return out;
  }

 private:
  std::string_view data_;
  bool is_broken_ = false;
};

std::string decode(const hadal::Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  hadal::TokenDecoder decoder(tokenizer);
  std::string out;
  for (const TokenId id : ids)
    out += decoder.push(id);
  return out + decoder.flush();
}

/// What differs first, or null.
const char* difference(const hadal::Tokenizer& tokenizer, const Case& c) {
  if (tokenizer.encode(c.text, AddedTokens::parse) != c.parsed)
    return "ids with added tokens";
  if (tokenizer.encode(c.text, AddedTokens::as_text) != c.plain)
    return "ids without added tokens";
  const hadal::PromptText prompt{c.text, {{0, static_cast<int64_t>(c.text.size())}}};
  if (tokenizer.encode(prompt) != c.plain)
    return "ids of content";
  if (decode(tokenizer, c.parsed) != c.decoded)
    return "decoded text";
  return nullptr;
}

void print_escaped(const std::string& text) {
  for (const char c : text.substr(0, 400)) {
    if (c >= 0x20 && c < 0x7F && c != '\\')
      std::printf("%c", c);
    else
      std::printf("\\x%02X", static_cast<unsigned>(static_cast<uint8_t>(c)));
  }
  std::printf("\n");
}

int compare(const hadal::Tokenizer& tokenizer,
            std::string_view data,
            std::map<std::string, int>* counts) {
  Reader reader(data);
  int failures = 0;
  size_t bytes = 0;
  const auto start = std::chrono::steady_clock::now();
  while (!reader.at_end()) {
    Case c;
    c.name = reader.record();
    c.text = reader.record();
    c.parsed = reader.ids();
    c.plain = reader.ids();
    c.decoded = reader.record();
    ++(*counts)[c.name];
    bytes += c.text.size();
    if (const char* what = difference(tokenizer, c); what != nullptr && ++failures <= 20) {
      std::printf("%s: %s differ for ", c.name.c_str(), what);
      print_escaped(c.text);
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%zu bytes, three encodes and a decode each: %.2f s\n", bytes, seconds.count());
  return reader.is_broken() ? failures + 1 : failures;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::printf("usage: text_exactness TOKENIZER_JSON VECTORS MIN MIN_PER_CLASS\n");
    return 64;
  }
  const std::optional<std::string> json = read_file(argv[1]);
  const std::optional<std::string> vectors = read_file(argv[2]);
  if (!json || !vectors || !vectors->starts_with("hadal-vectors 1\n")) {
    std::printf("cannot read %s or %s\n", argv[1], argv[2]);
    return 66;
  }
  const auto tokenizer = hadal::Tokenizer::from_tokenizer_json(*json);
  if (!tokenizer) {
    std::printf("%s\n", tokenizer.error().message.c_str());
    return 66;
  }
  std::map<std::string, int> counts;
  const std::string_view data = std::string_view(*vectors).substr(16);
  const int failures = compare(tokenizer.value(), data, &counts);
  int total = 0;
  bool is_enough = counts.size() >= 15;
  for (const auto& [name, count] : counts) {
    total += count;
    const bool is_exhaustive = name == "every_code_point" || name == "long_runs";
    is_enough = is_enough && (is_exhaustive || count >= std::atoi(argv[4]));
    std::printf("%-18s %d\n", name.c_str(), count);
  }
  std::printf("%d strings, %d differ\n", total, failures);
  if (!is_enough || total < std::atoi(argv[3])) {
    std::printf("too few strings: expected %s, %s in each of 15 classes\n", argv[3], argv[4]);
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
