// Tokenizer and chat template for the null runner without a model directory: one token a byte.
#pragma once

#include <hadal/base/result.h>

#include "assembly.h"

namespace hadal {

/// 256 byte tokens, then DeepSeek's begin, end, user, assistant and think markers.
Result<TextParts> make_byte_model();

}  // namespace hadal
