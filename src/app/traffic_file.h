// The file of `--traffic-config`: every bound of the gates, the ladder, the breaker and the
// quarantine that somebody may want to change.
#pragma once

#include <filesystem>
#include <string_view>

#include <hadal/base/result.h>

#include "config.h"

namespace hadal {

/// Changes what the file names in `config`; what a flag of the command line gave stays.
/// invalid_argument says what was wrong where, and nothing is changed then.
Status apply_traffic_text(std::string_view text, std::string_view origin, Config& config);
/// The same with the file of `--traffic-config`; nothing without one.
Status apply_traffic_file(Config& config);

}  // namespace hadal
