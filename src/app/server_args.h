// What /get_server_info tells about the flags.
#pragma once

#include <string>

#include "config.h"

namespace hadal {

/// A JSON object with SGLang's key names: the flags as given and the values that clients look for.
/// The API key is left out.
std::string server_args_json(const Config& config);

}  // namespace hadal
