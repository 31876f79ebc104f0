// The ranks of one node over shared memory.
#pragma once

#include <memory>

#include <hadal/comm/communicator.h>

#include "node_memory.h"

namespace hadal {

/// Rank and world are those within the node.
std::unique_ptr<Communicator> make_node_communicator(std::shared_ptr<NodeMemory> memory);

}  // namespace hadal
