// The shape of a step: which tokens belong to which batch row, and where their KV lives.
//
//   tokens   t0 t1 t2 | t3 | t4 t5      M tokens, row after row
//   row      0        | 1  | 2          row_offsets = 0 3 4 6
//
// A token's KV position p of batch row r is token p % 64 of page page_table[r][p / 64]. Two rows of
// a step may share pages (the end of a prompt and recomputed generated tokens): all KV of a layer
// is written before any attention of that layer reads.
//
// A row may be padding, so that a step has a size for which a graph was captured: a generated row
// of one token at position -1, with a kv_length of 0 and no pages. Its token id is any of the
// vocabulary. Ops leave it without effect on the cache, on experts and on other rows; what they
// write for it is finite.
#pragma once

#include <cstdint>

#include <hadal/tensor/tensor.h>

namespace hadal {

inline constexpr int32_t kKvPageTokens = 64;  ///< tokens of a KV page

/// Values of BatchGeometry::forms (the same as AttentionForm in a plan).
inline constexpr uint8_t kFormPrompt = 0;
inline constexpr uint8_t kFormGenerated = 1;

/// Device arrays, plus the few sums that a launch needs on the host. Entries of page_table beyond a
/// row's kv_length are never read.
struct BatchGeometry {
  ConstTensorView row_offsets{};  ///< [R + 1] i32: first token of each row; the last entry is M
  ConstTensorView token_rows{};   ///< [M] i32: the row of each token
  ConstTensorView positions{};    ///< [M] i32: position of each token in its sequence; -1 = padding
  ConstTensorView kv_lengths{};   ///< [R] i32: tokens in the cache once this step's are written
  ConstTensorView page_table{};   ///< [R, max_pages] i32; dimension 0 may be strided
  ConstTensorView forms{};        ///< [R] u8: kFormPrompt or kFormGenerated
  int32_t num_tokens = 0;         ///< M
  int32_t num_rows = 0;           ///< R
  int32_t num_prompt_rows = 0;
  int32_t num_prompt_tokens = 0;  ///< tokens of prompt rows
  int32_t num_prompt_pages = 0;   ///< sum over prompt rows of ceil(kv_length / 64)
  int32_t max_row_tokens = 0;     ///< longest row of this step, in tokens
  int32_t max_kv_length = 0;      ///< largest of kv_lengths
};

}  // namespace hadal
