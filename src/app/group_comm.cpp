// Ranks as processes meet in no collectives yet, so they can run the null runner alone.
#include "group_comm.h"

namespace hadal {

Result<std::unique_ptr<Runner>> make_group_rank_runner(const Config& config,
                                                       const std::filesystem::path& /*model_dir*/,
                                                       Board& board,
                                                       int32_t /*rank*/) {
  return Error{ErrorCode::unsupported,
               "--nnodes " + std::to_string(config.layout.num_nodes) + " with " +
                   std::to_string(board.shape().world_size) +
                   " ranks as processes: only --runner null:STEP_US runs so in this version"};
}

}  // namespace hadal
