// The ranks with the same place in every node, over their connections.
#pragma once

#include <memory>

#include <hadal/comm/communicator.h>

#include "peer_links.h"

namespace hadal {

/// Rank r is node r.
std::unique_ptr<Communicator> make_cross_communicator(std::unique_ptr<PeerLinks> links);

}  // namespace hadal
