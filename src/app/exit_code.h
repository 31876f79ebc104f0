// Exit codes after sysexits.h: a supervisor can tell a bad flag from a bad model from a bad day.
#pragma once

#include <hadal/base/result.h>

namespace hadal {

enum ExitCode : int {
  kExitOk = 0,
  kExitUsage = 64,         ///< flags or configuration
  kExitData = 65,          ///< a file of the model is damaged or contradicts itself
  kExitModel = 66,         ///< no such model, or it does not fit into memory
  kExitUnhealthy = 69,     ///< doctor found something to change
  kExitInternal = 70,      ///< a step failed, hung, or hadal was wrong about itself
  kExitRankFailed = 71,    ///< another rank of the group ended
  kExitRankHung = 72,      ///< a rank is stopped, or a step did not end in time
  kExitNodeLost = 73,      ///< a node's connection broke or fell silent
  kExitDisagreement = 74,  ///< ranks disagree about ids or page tables
  kExitRetry = 75,         ///< a port is taken or a node did not come: trying again may help
  kExitSecret = 77,        ///< the group secret is not the same on all nodes
  kExitMismatch = 78,      ///< version, flags or model files differ between nodes
};

/// For errors while a model is looked up, checked or loaded.
inline ExitCode model_exit_code(const Error& error) {
  switch (error.code) {
    case ErrorCode::not_found:
    case ErrorCode::resource_exhausted:
      return kExitModel;
    case ErrorCode::invalid_argument:
    case ErrorCode::data_loss:
    case ErrorCode::unsupported:
      return kExitData;
    case ErrorCode::cancelled:
    case ErrorCode::unavailable:
      return kExitInternal;
  }
  return kExitInternal;
}

}  // namespace hadal
