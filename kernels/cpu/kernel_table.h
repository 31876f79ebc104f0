// The inner loops of the CPU backend, once per instruction set, chosen at run time.
//
// Everything here is raw pointers and plain structs: the files that define a table are compiled
// with other instruction sets than the rest, so they must not instantiate code that others could
// link to. All kernels sum in a fixed order for each output element: over k, one fused multiply-add
// after the other within a group of up to 128, then group by group. So results do not depend on how
// many rows or columns one call computes.
#pragma once

#include <cstdint>

namespace hadal {

enum class CpuIsa : uint8_t;

}  // namespace hadal

namespace hadal::cpu {

inline constexpr int64_t kLanes = 16;      ///< features of a panel
inline constexpr int64_t kMaxGroup = 128;  ///< longest group of k
inline constexpr int64_t kKeyTile = 64;    ///< keys of a tile of prompt attention
inline constexpr int64_t kKvChunk = 128;   ///< cached tokens of one partial of generated attention
inline constexpr int64_t kMaxPanels = 4;   ///< panels that one panel_gemm may compute
inline constexpr int64_t kMaxGemmRows = 256;  ///< rows likewise

enum class PanelType : uint8_t { f32, bf16, e4m3 };

/// A weight matrix [features, K] as panels of 16 features: element (n, k) lies at
/// data[(n / 16 * K + k) * 16 + n % 16]. Features are padded with zeros to whole panels.
struct PanelMatrix {
  PanelType type = PanelType::f32;
  int64_t num_panels = 0;
  int64_t columns = 0;  ///< K
  const void* data = nullptr;
  /// e4m3 only: [num_panels][num_groups][16], 256 times the scale (codes are read as value / 256).
  const float* scales = nullptr;
  const int32_t* group_ends = nullptr;  ///< [num_groups]: end of each group of k; groups <= 128
  int64_t num_groups = 0;
};

struct PanelGemm {
  const PanelMatrix* matrix = nullptr;
  int64_t panel_begin = 0;
  int64_t panel_count = 0;             ///< 1..kMaxPanels
  const float* const* rows = nullptr;  ///< [num_rows] pointers to K floats
  int64_t num_rows = 0;                ///< 1..kMaxGemmRows
  float* out = nullptr;                ///< [num_rows][out_stride], panel_count * 16 columns written
  int64_t out_stride = 0;
  float* scratch = nullptr;  ///< kMaxGroup * kMaxPanels * 16 floats, 64-byte aligned
};

/// One chunk of the cache against the heads of one query, absorbed form:
///   s[h][t] = scale * sum_d q[h][d] key[t][d];  max_out[h] = max_t s;  sum_out[h] = sum_t exp(s -
///   max) out[h][d] = sum_t exp(s - max) key[t][d], d < latents
struct AbsorbedChunk {
  const float* q = nullptr;  ///< [heads][width]
  int64_t heads = 0;
  int64_t width = 0;  ///< latents + rope
  int64_t latents = 0;
  const void* const* keys = nullptr;  ///< [num_tokens] pointers to width values
  bool keys_are_bf16 = false;
  int64_t num_tokens = 0;  ///< 1..kKvChunk
  float scale = 0.0F;
  float* scores = nullptr;   ///< scratch, [heads][kKvChunk]
  float* out = nullptr;      ///< [heads][latents]
  float* max_out = nullptr;  ///< [heads]
  float* sum_out = nullptr;  ///< [heads]
};

/// A tile of keys against queries of one head, non-absorbed form; updates running softmax states.
struct PromptTile {
  const float* const* q = nullptr;  ///< [num_queries] pointers to key_dim floats
  int64_t num_queries = 0;          ///< 1..kPromptQueries
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  const float* keys = nullptr;       ///< [key_dim][kKeyTile], transposed
  const float* values = nullptr;     ///< [kKeyTile][value_stride]
  int64_t value_stride = 0;          ///< value_dim rounded up to 16
  const int32_t* visible = nullptr;  ///< [num_queries] keys of this tile that count, 0..kKeyTile
  float scale = 0.0F;
  float* scores = nullptr;  ///< scratch, [num_queries][kKeyTile]
  float* out = nullptr;     ///< [num_queries][value_stride], not yet divided by sum
  float* max = nullptr;     ///< [num_queries] running maximum, -inf at first
  float* sum = nullptr;     ///< [num_queries]
};

inline constexpr int64_t kPromptQueries = 48;

struct KernelTable {
  const char* name;
  void (*panel_gemm)(const PanelGemm& args);
  void (*absorbed_chunk)(const AbsorbedChunk& args);
  void (*prompt_tile)(const PromptTile& args);
  /// out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t count);
  /// Sum of squares: 16 interleaved partial sums, added in a fixed tree.
  float (*sum_of_squares)(const float* x, int64_t count);
  void (*bf16_to_f32)(const uint16_t* in, float* out, int64_t count);
  void (*f32_to_bf16)(const float* in, uint16_t* out, int64_t count);
  /// out[i] = scale * code i, for codes that are not NaN.
  void (*e4m3_to_f32)(const uint8_t* in, float scale, float* out, int64_t count);
};

/// Plain C++: the exact mode, and machines without AVX2.
const KernelTable& generic_kernels();
/// Null when the compiler could not build them.
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
/// The best that this processor runs, up to max_isa.
const KernelTable& best_kernels(CpuIsa max_isa);

}  // namespace hadal::cpu
