// The gates that a request passes, cheapest first; a refusal names its gate in a metric, in the log
// and in the response header x-hadal-gate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hadal {

enum class Gate : uint8_t {
  none,
  accept,      ///< G0: connections
  bytes,       ///< G1: heads, bodies, their time, the memory of all bodies
  identity,    ///< G2: the API key and its limits
  shape,       ///< G3: what the request asks for
  queue,       ///< G4: places in the queue, in requests and tokens
  text,        ///< G5: threads that tokenise long prompts
  wait,        ///< G6: the time it would wait
  ladder,      ///< the step of degradation
  breaker,     ///< the engine has failed or has not yet proved itself
  quarantine,  ///< the request was there each time the engine failed
  drain,       ///< the server is going away
};

inline constexpr size_t kNumGates = 12;

/// "G0_accept"; "" for none. G7, the admission to KV pages, refuses nobody: who does not fit waits.
std::string_view gate_name(Gate gate);

}  // namespace hadal
