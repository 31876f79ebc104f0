// Ids, seeds, limits.
#include "serving_context.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <string>

#include <hadal/base/check.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

namespace hadal::api {

namespace {

uint64_t random_bits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32U) | device();
}

void append_hex(std::string& out, uint64_t value) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (int shift = 60; shift >= 0; shift -= 4) {
    out += kHex[(value >> static_cast<unsigned>(shift)) & 15U];
  }
}

}  // namespace

uint64_t mix_bits(uint64_t value) {
  // splitmix64's finaliser: a bijection, so distinct counts give distinct ids.
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31U);
}

IdSource::IdSource(std::optional<uint64_t> seed)
    : id_key_{random_bits(), random_bits()}, seed_key_(seed ? mix_bits(*seed) : random_bits()) {
  const int is_random = RAND_bytes(namespace_key_.data(), static_cast<int>(namespace_key_.size()));
  HADAL_CHECK(is_random == 1, "api: the system gives no random bytes");
}

std::string IdSource::cache_namespace(std::string_view salt) const {
  if (salt.empty())
    return {};
  return digest("cache_salt:" + std::string(salt));
}

std::string IdSource::fingerprint(std::string_view body) const {
  return digest("body:" + std::string(body));
}

std::string IdSource::digest(std::string_view message) const {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  const auto* bytes = reinterpret_cast<const unsigned char*>(message.data());
  const unsigned char* done = HMAC(EVP_sha256(),
                                   namespace_key_.data(),
                                   static_cast<int>(namespace_key_.size()),
                                   bytes,
                                   message.size(),
                                   digest.data(),
                                   &size);
  HADAL_CHECK(done != nullptr && size == 32, "api: HMAC-SHA256 failed");
  return {reinterpret_cast<const char*>(digest.data()), size};
}

std::string IdSource::next_hex() {
  const uint64_t count = num_ids_.fetch_add(1, std::memory_order_relaxed);
  std::string id;
  append_hex(id, mix_bits(id_key_[0] + count));
  append_hex(id, mix_bits(id_key_[1] ^ mix_bits(count)));
  return id;
}

uint64_t IdSource::next_seed() {
  return mix_bits(seed_key_ + num_seeds_.fetch_add(1, std::memory_order_relaxed));
}

int32_t ServingContext::vocab_size() const {
  return std::min(model.engine->limits().vocab_size, model.tokenizer->vocab_size());
}

int32_t ServingContext::context_tokens_max() const {
  const RunnerLimits& limits = model.engine->limits();
  const int64_t pool = static_cast<int64_t>(limits.num_pages) * kPageTokens;
  const int64_t most = std::min<int64_t>({model.context_length, limits.max_context_tokens, pool});
  return static_cast<int32_t>(most);
}

int64_t unix_time() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace hadal::api
