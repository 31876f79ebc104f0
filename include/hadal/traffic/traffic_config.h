// What the policies of admission go by. The defaults need no thought.
#pragma once

#include <hadal/traffic/api_key.h>
#include <hadal/traffic/breaker.h>
#include <hadal/traffic/ladder.h>
#include <hadal/traffic/quarantine.h>

namespace hadal {

struct TrafficConfig {
  ApiKey anonymous{"anonymous", {}, 1.0, TrafficClass::normal, {}};  ///< everybody, without keys
  LadderConfig ladder;
  BreakerConfig breaker;
  QuarantineConfig quarantine;
};

}  // namespace hadal
