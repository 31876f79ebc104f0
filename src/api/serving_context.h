// What every handler of an open server may read: configuration, model, metrics, and the sources of
// ids and seeds. Const and thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include <hadal/api/server.h>

namespace hadal::api {

/// 64 well-mixed bits from 64 bits.
uint64_t mix_bits(uint64_t value);

/// Unguessable ids (random start, counted up, mixed) and the seeds of requests that send none.
class IdSource {
 public:
  /// `seed` fixes the seeds handed out, not the ids.
  explicit IdSource(std::optional<uint64_t> seed);

  /// 32 hexadecimal digits, never the same twice in a process.
  std::string next_hex();
  uint64_t next_seed();
  /// The namespace of the radix cache for a `cache_salt`: HMAC-SHA256 under a key of this process,
  /// so that nobody can name another's namespace. Empty for an empty salt: what all share.
  std::string cache_namespace(std::string_view salt) const;
  /// A digest of a request's body that nobody outside can make.
  std::string fingerprint(std::string_view body) const;

 private:
  std::string digest(std::string_view message) const;

  uint64_t id_key_[2];
  uint64_t seed_key_;
  std::array<unsigned char, 32> namespace_key_;
  std::atomic<uint64_t> num_ids_{0};
  std::atomic<uint64_t> num_seeds_{0};
};

struct ServingContext {
  const ApiConfig& config;
  const ServedModel& model;
  IdSource& ids;
  /// Of requests that name none, while the server is degraded; 0 = no other limit than ever.
  int32_t max_tokens_if_absent = 0;

  /// Ids below this name a token of both the tokenizer and the model.
  int32_t vocab_size() const;
  /// Prompt plus generated tokens of one sequence, by context length and KV pool.
  int32_t context_tokens_max() const;
};

/// Seconds since 1970.
int64_t unix_time();

}  // namespace hadal::api
