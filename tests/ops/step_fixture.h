// A step's geometry and a paged cache for attention tests: rows of several sequences on shuffled
// pages, every slot that the step must not read poisoned.
#pragma once

#include <cstdint>
#include <vector>

#include <hadal/ops/kv_record.h>

#include "op_test.h"

namespace hadal::test {

struct RowSpec {
  int32_t sequence = 0;  ///< whose pages
  int32_t begin = 0;     ///< position of the row's first token
  int32_t count = 0;
  uint8_t form = kFormGenerated;
};

class StepFixture {
 public:
  /// `sequences[i]` = tokens of sequence i; pages are dealt in an order that depends on the seed.
  StepFixture(Random& random,
              const std::vector<int32_t>& sequences,
              const std::vector<RowSpec>& rows);

  const BatchGeometry& geometry() const { return geometry_; }

  int32_t num_pages() const { return num_pages_; }

  /// Where position p of a sequence lives: page and slot.
  int32_t page(int32_t sequence, int32_t position) const {
    return pages_[static_cast<size_t>(sequence)][static_cast<size_t>(position / kKvPageTokens)];
  }

  const std::vector<RowSpec>& rows() const { return rows_; }

  int32_t num_tokens() const { return geometry_.num_tokens; }

 private:
  std::vector<RowSpec> rows_;
  std::vector<std::vector<int32_t>> pages_;
  int32_t num_pages_ = 0;
  GuardedTensor row_offsets_;
  GuardedTensor token_rows_;
  GuardedTensor positions_;
  GuardedTensor kv_lengths_;
  GuardedTensor page_table_;
  GuardedTensor forms_;
  BatchGeometry geometry_;
};

/// The least power of two with which `amax` fits E4M3.
double kv_scale(double amax);

inline constexpr DType kKvTypes[] = {DType::f32, DType::bf16, DType::f8_e4m3};

/// Writes known latents and rope features of every position of every sequence into the middle layer
/// of a poisoned pool; `exact[s]` holds what the cache then says.
struct CacheFixture {
  KvRecord record;
  GuardedTensor pool;  ///< [pages, layers, 64, record]
  std::vector<Matrix> exact;

  /// values[s] is [tokens, latents + rope].
  CacheFixture(const StepFixture& step,
               const std::vector<Matrix>& values,
               DType dtype,
               int64_t latents);
  /// The middle layer: [pages, 64, record], strided.
  TensorView layer() const;
};

}  // namespace hadal::test
