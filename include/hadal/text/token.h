// Token ids: the one text type that plan, sched and engine know.
#pragma once

#include <cstdint>

namespace hadal {

/// Index into the vocabulary; valid ids are 0 <= id < vocab_size.
using TokenId = int32_t;

}  // namespace hadal
