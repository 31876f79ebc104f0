// Attention of prompt rows on sm_90a: attention_prompt.cu's first kernel by warpgroup products.
//
// A block projects two pages to a head's keys or values and writes their images (attention_plan.h).
// Keys lie by token: their rows are the tokens, a warpgroup a page, with the rope part of the cache
// beside them. Values lie by value, over the tokens: their rows are those of W_UV, 64 a warpgroup.
#include "attention.h"
#include "attention_hopper.cuh"
#include "attention_project.cuh"
#include "launch.cuh"

namespace hadal::cuda {

namespace {

constexpr int32_t kPages = 2;
constexpr int32_t kOperandBytes = kPages * kPageLatentBytes;  ///< 128 lines
constexpr int32_t kTileBytes = kImageTile * 2;                ///< 64 lines of an image
constexpr int32_t kGroupBytes = 64 * kDepthBytes;  ///< a warpgroup's rows of an operand
static_assert(kProjectThreads == 2 * 128 && kProjectColumns == 128 && kTileBytes == kGroupBytes);
static_assert(kImageSize - kImageValues == 2 * kImageTile);

struct ProjectShared {
  std::byte latents[kProjectStages][kOperandBytes];
  std::byte weights[kProjectStages][kOperandBytes];
};

constexpr int32_t kSharedBytes = static_cast<int32_t>(sizeof(ProjectShared)) + 1024;

/// The warpgroup's 64 rows of the product, to shared memory as the images' tiles: for keys, two of
/// its page; for values, 64 lines of either page.
__device__ inline void store_tiles(const float (&c)[64], int32_t half, std::byte* images) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t group = threadIdx.x / 128;
  const int32_t row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int32_t n = 0; n < 16; ++n) {
    const int32_t column = 8 * n + lane % 4 * 2;
    // An image's part is two tiles: of features 0-63 and 64-127, or of values 0-63 and 64-127.
    const int32_t tile = half == 0 ? 2 * group + column / 64 : 2 * (column / 64) + group;
    std::byte* to = images + tile * kTileBytes + column % 8 * 2;
#pragma unroll
    for (int32_t h = 0; h < 2; ++h) {
      *reinterpret_cast<uint32_t*>(to + swizzled(row + 8 * h, column % 64 / 8, kDepthBytes)) =
          f32_to_bf16x2(c[4 * n + 2 * h], c[4 * n + 2 * h + 1]);
    }
  }
}

/// A page's tiles from shared memory, and the rope part of its keys from the cache.
__device__ inline void store_page(const PromptParams& p,
                                  const ProjectTile& tile,
                                  int32_t half,
                                  const std::byte* tiles) {
  auto* out = reinterpret_cast<uint4*>(tile.out + (half == 0 ? 0 : kImageValues));
  for (int32_t i = threadIdx.x; i < 2 * kTileBytes / 16; i += kProjectThreads) {
    out[i] = reinterpret_cast<const uint4*>(tiles)[i];
  }
  if (half == 1) {
    return;
  }
  for (int32_t i = threadIdx.x; i < kTileBytes / 16; i += kProjectThreads) {
    const int32_t row = i / kDepthChunks;
    const int32_t chunk = i % kDepthChunks;
    const std::byte* from = tile.records + row * p.step.record_bytes + p.step.rope_at + chunk * 16;
    out[2 * kTileBytes / 16 + swizzled(row, chunk, kDepthBytes) / 16] =
        row < tile.count ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  }
}

/// The operands of a block on their way to shared memory. FP8 codes stay in registers for the
/// length of a step before they are stored for the step after the next.
template <bool kFp8>
struct Loader {
  ProjectTile tiles[kPages];
  CodeChunk codes[kFp8 ? kPages : 1];

  __device__ Loader(const PromptParams& p, int32_t half) {
#pragma unroll
    for (int32_t i = 0; i < kPages; ++i) {
      const int32_t page = static_cast<int32_t>(blockIdx.y) * kPages + i;
      tiles[i] = find_project_tile(p, page, static_cast<int32_t>(blockIdx.x) / 2, half);
    }
  }

  /// Asks for the codes of a step, if it is one.
  __device__ void fetch(int32_t step) {
    if constexpr (kFp8) {
      if (step < kProjectSteps) {
#pragma unroll
        for (int32_t i = 0; i < kPages; ++i) {
          codes[i] = fetch_latents(tiles[i], step);
        }
      }
    }
  }

  /// Fills the stage of a step, if it is one, and commits its copies; of FP8 latents with the codes
  /// that were fetched.
  __device__ void load(int32_t step, ProjectShared& s) {
    if (step < kProjectSteps) {
      const int32_t stage = step % kProjectStages;
#pragma unroll
      for (int32_t i = 0; i < kPages; ++i) {
        std::byte* to = s.latents[stage] + i * kPageLatentBytes;
        if constexpr (kFp8) {
          store_latents(codes[i], to);
        } else {
          load_latents(tiles[i], step, shared_address(to));
        }
      }
      load_weights(tiles[0], step, shared_address(s.weights[stage]));
    }
    commit_copies();
  }
};

/// Grid (2 * heads of the group, pages / 2): block x / 2 is the head, x % 2 keys or values.
template <bool kFp8>
__global__ void __launch_bounds__(kProjectThreads, 2) hopper_project_kernel(PromptParams p) {
  extern __shared__ std::byte memory[];
  std::byte* aligned = memory + (1024 - shared_address(memory) % 1024) % 1024;
  auto& s = *reinterpret_cast<ProjectShared*>(aligned);
  wait_for_previous();
  let_next_start();
  const int32_t half = static_cast<int32_t>(blockIdx.x) % 2;
  Loader<kFp8> loader(p, half);
  if (loader.tiles[0].count == 0) {
    return;
  }
  constexpr int32_t kAhead = kProjectStages - 1;
#pragma unroll
  for (int32_t step = 0; step < kAhead; ++step) {
    loader.fetch(step);
    loader.load(step, s);
  }
  loader.fetch(kAhead);
  // From lane 0, so that the compiler knows it to be one value in a warp.
  const int32_t group = __shfl_sync(kFullMask, static_cast<int32_t>(threadIdx.x) / 128, 0);
  float c[64];
#pragma unroll
  for (int32_t i = 0; i < 64; ++i) {
    c[i] = 0.0F;
  }
  for (int32_t step = 0; step < kProjectSteps; ++step) {
    wait_copies<kAhead - 1>();
    fence_shared_for_products();
    wait_products(c);  // of the step before, whose stage is filled next
    __syncthreads();
    loader.load(step + kAhead, s);
    loader.fetch(step + kAhead + 1);
    const uint32_t latents = shared_address(s.latents[step % kProjectStages]);
    const uint32_t weights = shared_address(s.weights[step % kProjectStages]);
    const uint32_t rows = (half == 0 ? latents : weights) + group * kGroupBytes;
    const uint32_t columns = half == 0 ? weights : latents;
    begin_products();
#pragma unroll
    for (int32_t k = 0; k < kProjectDepth / 16; ++k) {
      multiply_shared<true>(c, swizzled_operand(rows + k * 32), swizzled_operand(columns + k * 32));
    }
    commit_products();
  }
  wait_products(c);
  __syncthreads();
  std::byte* images = s.latents[0];
  static_assert(kProjectStages * kOperandBytes >= kPages * 2 * kTileBytes);
  store_tiles(c, half, images);
  __syncthreads();
#pragma unroll
  for (int32_t i = 0; i < kPages; ++i) {
    if (loader.tiles[i].count > 0) {
      store_page(p, loader.tiles[i], half, images + i * 2 * kTileBytes);
    }
  }
}

template <bool kFp8>
void launch_project(const PromptParams& p, cudaStream_t stream) {
  // Idempotent, and no work of the stream: legal while a graph is captured.
  (void)cudaFuncSetAttribute(
      hopper_project_kernel<kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  launch_early(hopper_project_kernel<kFp8>,
               dim3(2 * static_cast<uint32_t>(p.num_heads),
                    static_cast<uint32_t>((p.rows.most_pages + kPages - 1) / kPages)),
               dim3(kProjectThreads),
               static_cast<size_t>(kSharedBytes),
               stream,
               p);
}

}  // namespace

void launch_hopper_project(const PromptParams& p, cudaStream_t stream) {
  p.step.kv_type == DType::f8_e4m3 ? launch_project<true>(p, stream)
                                   : launch_project<false>(p, stream);
}

}  // namespace hadal::cuda
