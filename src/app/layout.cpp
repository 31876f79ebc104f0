// Which node am I, of how many: flags first, then what LeaderWorkerSet puts into the environment.
#include "layout.h"

#include <charconv>

namespace hadal {

namespace {

std::optional<int32_t> parse_index(const std::string& text) {
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) {
    return std::nullopt;
  }
  return value;
}

/// The leader pod is named like the first label of its address; workers append -1, -2, ...
std::optional<int32_t> rank_from_hostname(const std::string& hostname,
                                          const std::string& leader_address) {
  const std::string leader = leader_address.substr(0, leader_address.find('.'));
  if (hostname == leader) {
    return 0;
  }
  if (hostname.size() > leader.size() + 1 && hostname.starts_with(leader + "-")) {
    return parse_index(hostname.substr(leader.size() + 1));
  }
  return std::nullopt;
}

Error bad_variable(const char* name, const std::string& value) {
  return Error{ErrorCode::invalid_argument,
               std::string(name) + ": expected a number, got '" + value + "'"};
}

Result<int32_t> node_count(const std::optional<int32_t>& flag, const Environment& environment) {
  if (flag) {
    return *flag;
  }
  const auto size = environment.get("LWS_GROUP_SIZE");
  if (!size) {
    return 1;
  }
  const auto count = parse_index(*size);
  if (!count || *count < 1) {
    return bad_variable("LWS_GROUP_SIZE", *size);
  }
  return *count;
}

Result<int32_t> node_rank(const std::optional<int32_t>& flag,
                          int32_t num_nodes,
                          const Environment& environment) {
  if (flag) {
    return *flag;
  }
  if (num_nodes == 1) {
    return 0;
  }
  if (const auto index = environment.get("LWS_WORKER_INDEX")) {
    const auto rank = parse_index(*index);
    if (!rank) {
      return bad_variable("LWS_WORKER_INDEX", *index);
    }
    return *rank;
  }
  if (const auto leader = environment.get("LWS_LEADER_ADDRESS")) {
    if (const auto rank = rank_from_hostname(environment.hostname, *leader)) {
      return *rank;
    }
  }
  return Error{ErrorCode::invalid_argument,
               "--node-rank: " + std::to_string(num_nodes) +
                   " nodes, and neither the flag, LWS_WORKER_INDEX nor the host name says which "
                   "one this is"};
}

Status set_rendezvous(const std::string& address, LayoutOptions& layout) {
  const size_t colon = address.rfind(':');
  const auto port =
      colon == std::string::npos ? std::nullopt : parse_index(address.substr(colon + 1));
  if (colon == 0 || !port || *port < 1 || *port > 65535) {
    return Error{ErrorCode::invalid_argument,
                 "--dist-init-addr: expected host:port, got '" + address + "'"};
  }
  layout.rendezvous_host = address.substr(0, colon);
  layout.rendezvous_port = static_cast<uint16_t>(*port);
  return ok_status();
}

}  // namespace

Result<LayoutOptions> resolve_layout(const LayoutFlags& flags, const Environment& environment) {
  LayoutOptions layout;
  layout.tp_size = flags.tp_size;
  auto num_nodes = node_count(flags.num_nodes, environment);
  if (!num_nodes) {
    return num_nodes.error();
  }
  layout.num_nodes = num_nodes.value();
  auto rank = node_rank(flags.node_rank, layout.num_nodes, environment);
  if (!rank) {
    return rank.error();
  }
  layout.node_rank = rank.value();
  if (layout.node_rank >= layout.num_nodes) {
    return Error{ErrorCode::invalid_argument,
                 "--node-rank: expected 0.." + std::to_string(layout.num_nodes - 1) + ", got " +
                     std::to_string(layout.node_rank)};
  }
  if (layout.tp_size % layout.num_nodes != 0) {
    return Error{ErrorCode::invalid_argument,
                 "--tp-size: " + std::to_string(layout.tp_size) + " ranks do not divide over " +
                     std::to_string(layout.num_nodes) + " nodes"};
  }
  std::optional<std::string> address = flags.address;
  if (const auto leader = environment.get("LWS_LEADER_ADDRESS"); !address && leader) {
    address = *leader + ":20000";
  }
  if (address) {
    HADAL_RETURN_IF_ERROR(set_rendezvous(*address, layout));
  } else if (layout.num_nodes > 1) {
    return Error{ErrorCode::invalid_argument,
                 "--dist-init-addr: " + std::to_string(layout.num_nodes) +
                     " nodes need the host:port of node 0"};
  }
  return layout;
}

}  // namespace hadal
