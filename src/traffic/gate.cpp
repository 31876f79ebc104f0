// See gate.h.
#include <array>

#include <hadal/traffic/gate.h>

namespace hadal {

std::string_view gate_name(Gate gate) {
  constexpr std::array<std::string_view, kNumGates> kNames = {"",
                                                              "G0_accept",
                                                              "G1_bytes",
                                                              "G2_identity",
                                                              "G3_shape",
                                                              "G4_queue",
                                                              "G5_text",
                                                              "G6_wait",
                                                              "ladder",
                                                              "breaker",
                                                              "quarantine",
                                                              "drain"};
  return kNames[static_cast<size_t>(gate)];
}

}  // namespace hadal
