// What every backend asks of a weight's source before it prepares it.
#pragma once

#include <hadal/backend/weight.h>
#include <hadal/base/result.h>

namespace hadal {

/// invalid_argument says what does not fit: part counts and shapes for the role, dtypes, scale
/// shapes, block offsets, kv_b's head sizes; also an f8_e4m3 value that is NaN (a damaged or
/// misread checkpoint: no kernel has to keep it). Reads every byte of f8_e4m3 parts.
Status check(const WeightSource& source);

}  // namespace hadal
