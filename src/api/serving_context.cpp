// Ids, seeds, limits.
#include "serving_context.h"

#include <algorithm>
#include <chrono>
#include <random>

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
    : id_key_{random_bits(), random_bits()}, seed_key_(seed ? mix_bits(*seed) : random_bits()) {}

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
