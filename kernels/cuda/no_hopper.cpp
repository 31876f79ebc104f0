// Stands in for the kernels of sm_90a in builds without code for it (HADAL_CUDA_ARCHS): the family
// is refused before one is asked for.
#include <hadal/base/check.h>

#include "attention.h"
#include "product.h"

namespace hadal::cuda {

void launch_hopper_project(const PromptParams& /*params*/, cudaStream_t /*stream*/) {
  HADAL_CHECK(false, "this build has no kernels of sm_90a");
}

void launch_hopper_attend(const PromptParams& /*params*/, cudaStream_t /*stream*/) {
  HADAL_CHECK(false, "this build has no kernels of sm_90a");
}

void launch_hopper_product(const ProductArgs& /*args*/,
                           ProductMode /*mode*/,
                           bool /*is_pair*/,
                           const HopperTile& /*tile*/,
                           const OrderedX& /*x*/,
                           const ProductGrid& /*grid*/,
                           cudaStream_t /*stream*/) {
  HADAL_CHECK(false, "this build has no kernels of sm_90a");
}

}  // namespace hadal::cuda
