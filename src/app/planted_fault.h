// Faults that a test plants in one rank of the null runner: a step that never ends, ids that
// differ. A model's runner cannot have them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include <hadal/runtime/runner.h>

namespace hadal {

enum class FaultKind {
  hang,   ///< the step does not end, the process lives
  token,  ///< other ids are sampled than on the other ranks
};

struct PlantedFault {
  FaultKind kind = FaultKind::hang;
  int32_t rank = 0;
  uint64_t step_id = 0;  ///< the first step that has the fault
  double seconds = 0;    ///< of a hang, once; 0 = for ever
};

/// "hang@RANK:STEP", "hang@RANK:STEP:SECONDS" or "token@RANK:STEP"; nullopt for anything else.
std::optional<PlantedFault> parse_planted_fault(std::string_view text);

/// `runner` with the fault in it.
std::unique_ptr<Runner> plant_fault(std::unique_ptr<Runner> runner, const PlantedFault& fault);

}  // namespace hadal
