// From logits to tokens and log-probabilities.
//
// For each entry, in this order: penalties over the slot's history, logit bias, temperature; then
// the candidates are the top_k best that also lie in the top_p head and reach min_p (all three
// judged on the same softmax; ties go to the lowest id); then one candidate is drawn by the
// exponential race argmax(log p[v] - log(-log u[v])), where u[v] comes from integers hashed of
// (seed, position, v) by uniform_bits. So a draw depends on its own logits, seed and position
// alone: not on the batch, the ranks or the order of summation. Temperature 0 takes the largest
// logit. Log-probabilities are those of the model: log-softmax of the logits as given, before
// penalties, bias and temperature.
#pragma once

#include <cstdint>

#include <hadal/base/result.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

class Communicator;

/// 64 random bits for candidate `token` of the draw at (seed, position): two rounds of a 64-bit
/// mixing function over the three integers. Usable in device code: integers only.
constexpr uint64_t uniform_bits(uint64_t seed, int64_t position, int32_t token) {
  uint64_t z = seed + 0x9e3779b97f4a7c15ULL * (static_cast<uint64_t>(position) + 1ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  z += 0xd1342543de82ef95ULL * (static_cast<uint64_t>(static_cast<uint32_t>(token)) + 1ULL);
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ULL;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ULL;
  return z ^ (z >> 32);
}

/// The float in (0, 1) that a draw uses: 23 bits and a half, exact in float32.
constexpr float uniform_from_bits(uint64_t bits) {
  return (static_cast<float>(bits >> 41) + 0.5F) * 0x1p-23F;
}

/// What sampling remembers of the slots between steps; lives on the device.
struct SamplerState {
  TensorView generated_counts{};  ///< [num_slots, V] i32: how often a token was generated
  TensorView prompt_seen{};       ///< [num_slots, V] u8: 1 = in the prompt
  TensorView last_tokens{};       ///< [num_slots] i32: sampled last
};

/// A slot is taken over: its history is replaced. Fields are parallel over N slots.
struct ResetSlotsArgs {
  ConstTensorView slots{};              ///< [N] i32, distinct
  ConstTensorView history_offsets{};    ///< [N + 1] i32 into history
  ConstTensorView history{};            ///< [sum] i32 token ids, prompt first; may be empty
  ConstTensorView num_prompt_tokens{};  ///< [N] i32: how many of the history are prompt
  SamplerState state{};
};

/// One draw, or one question about a given token. Ranges are validated before (temperature finite
/// and
/// >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, repetition_penalty > 0).
struct SampleEntry {
  int32_t logits_row = 0;
  int32_t slot = 0;
  int32_t position = 0;  ///< of the token to draw, in its sequence
  /// >= 0: nothing is drawn; out_tokens is this token, and its log-probability is reported.
  int32_t given_token = -1;
  uint64_t seed = 0;
  float temperature = 1.0F;
  float top_p = 1.0F;
  float min_p = 0.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  float repetition_penalty = 1.0F;
  int32_t top_k = 0;       ///< 0 = all
  int32_t bias_begin = 0;  ///< its biases are bias_begin..bias_end of bias_tokens
  int32_t bias_end = 0;
  int32_t num_top =
      0;  ///< how many of the best tokens to report, up to the width of out_top_tokens
  uint8_t updates_history = 0;  ///< 1 = a drawn token is counted and becomes the slot's last token
  uint8_t wants_logprob = 0;    ///< 1 = out_logprobs is filled (else 0)
};

/// With comm, logits are this rank's slice of the vocabulary, rank r's beginning at r * V_local,
/// and every rank gets every result. An entry whose logits are not finite (-inf is allowed where
/// some other logit is finite) sets out_has_nan and gives token 0. Two entries of one call must not
/// both update one slot.
struct SampleArgs {
  ConstTensorView logits{};      ///< [L, V_local] f32
  Communicator* comm = nullptr;  ///< null = V_local is the whole vocabulary
  int32_t vocab_size = 0;        ///< V; logits beyond it (padding of the last slice) are ignored
  const SampleEntry* entries = nullptr;  ///< [N], device memory
  int32_t num_entries = 0;               ///< N
  ConstTensorView bias_tokens{};         ///< [B] i32; absent without biases
  ConstTensorView bias_values{};         ///< [B] f32; -inf forbids a token
  SamplerState state{};
  TensorView out_tokens{};        ///< [N] i32
  TensorView out_logprobs{};      ///< [N] f32
  TensorView out_has_nan{};       ///< [N] u8
  TensorView out_top_tokens{};    ///< [N, T] i32, best first; absent when no entry wants any
  TensorView out_top_logprobs{};  ///< [N, T] f32; likewise
};

Status check(const ResetSlotsArgs& args);
Status check(const SampleArgs& args);

}  // namespace hadal
