// Who listens where is shown over the boards; after that ranks talk to each other directly.
#include "group_comm.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

#include <hadal/comm/nccl_communicator.h>
#include <hadal/comm/process_communicator.h>

#include "assembly.h"
#include "device.h"
#include "group_setup.h"

#include <fcntl.h>
#include <unistd.h>

namespace hadal {
namespace {

using namespace std::chrono_literals;

/// Blob rounds of a rank; those of the supervisor are named in group_setup.h.
constexpr int32_t kAddressRound = 0;
constexpr int32_t kPagesRound = 1;
constexpr int32_t kNcclRound = 2;
constexpr size_t kHostBytesMax = 256;

/// What a rank shows: where its counterparts on other nodes find it. Rank 0's token is everyone's.
struct RankAddress {
  char host[kHostBytesMax] = {};
  uint16_t port = 0;
  GroupToken token{};
};

Result<std::vector<std::byte>> wait_blob(const Board& board, int32_t rank, int32_t round) {
  while (board.end_reason() == EndReason::none) {
    if (auto blob = board.blob(rank, round)) {
      return std::move(*blob);
    }
    std::this_thread::sleep_for(5ms);
  }
  return Error{ErrorCode::unavailable, board.end().text};
}

template <class T>
Result<std::vector<T>> exchange(Board& board, int32_t rank, int32_t round, const T& own) {
  board.set_blob(rank, round, std::as_bytes(std::span(&own, 1)));
  std::vector<T> all;
  for (int32_t other = 0; other < board.shape().world_size; ++other) {
    const auto blob = wait_blob(board, other, round);
    if (!blob) {
      return blob.error();
    }
    if (blob.value().size() != sizeof(T)) {
      return Error{ErrorCode::data_loss,
                   "rank " + std::to_string(other) + " shows a damaged value"};
    }
    std::memcpy(&all.emplace_back(), blob.value().data(), sizeof(T));
  }
  return all;
}

GroupToken random_token() {
  std::random_device device;
  GroupToken token{};
  for (std::byte& byte : token) {
    byte = static_cast<std::byte>(device() & 0xFFU);
  }
  return token;
}

Result<std::string> text_of_supervisor(const Board& board, int32_t round) {
  const auto blob = wait_blob(board, Board::kSupervisorReader, round);
  if (!blob) {
    return blob.error();
  }
  return std::string(reinterpret_cast<const char*>(blob.value().data()), blob.value().size());
}

/// Sockets to this rank's counterparts, by node.
Result<std::vector<int>> connect_nodes(const Config& config, Board& board, int32_t rank) {
  const int32_t node_size = board.shape().num_local;
  const auto host = text_of_supervisor(board, kHostRound);
  if (!host) {
    return host.error();
  }
  auto listener = PeerListener::listen_on({host.value(), 0});
  if (!listener) {
    return listener.error();
  }
  RankAddress own;
  std::strncpy(own.host, host.value().c_str(), kHostBytesMax - 1);
  own.port = listener.value().port();
  own.token = random_token();
  const auto all = exchange(board, rank, kAddressRound, own);
  if (!all) {
    return all.error();
  }
  PeerConnectConfig connect;
  connect.rank = rank;
  connect.world_size = board.shape().world_size;
  connect.node_size = node_size;
  connect.token = all.value().front().token;
  for (int32_t node = 0; node < config.layout.num_nodes; ++node) {
    const RankAddress& peer = all.value()[static_cast<size_t>(node * node_size + rank % node_size)];
    const size_t size = strnlen(peer.host, kHostBytesMax);
    connect.addresses.push_back({std::string(peer.host, size), peer.port});
  }
  return connect_peers(connect, listener.value());
}

/// Rank 0 makes the id and shows it; the others wait for it.
Result<NcclId> agree_on_nccl_id(Board& board, int32_t rank) {
  if (rank == 0) {
    auto id = make_nccl_id();
    if (id) {
      board.set_blob(0, kNcclRound, id.value());
    }
    return id;
  }
  const auto blob = wait_blob(board, 0, kNcclRound);
  if (!blob) {
    return blob.error();
  }
  NcclId id{};
  if (blob.value().size() != id.size()) {
    return Error{ErrorCode::data_loss, "rank 0 shows a damaged NCCL id"};
  }
  std::copy(blob.value().begin(), blob.value().end(), id.begin());
  return id;
}

/// GPUs: every rank of the group is in one NCCL communicator.
Result<std::unique_ptr<Communicator>> make_gpu_communicator(const Config& config,
                                                            Board& board,
                                                            int32_t rank) {
  const auto id = agree_on_nccl_id(board, rank);
  if (!id) {
    return id.error();
  }
  auto comm = make_nccl_communicator(
      {.id = id.value(),
       .rank = rank,
       .world_size = board.shape().world_size,
       .device_index = config.runner.base_gpu_id + rank % board.shape().num_local,
       .enable_nvls = config.runner.enable_nccl_nvls});
  if (!comm) {
    return comm.error();
  }
  return std::unique_ptr<Communicator>(std::move(comm).value());
}

Result<std::unique_ptr<Communicator>> make_communicator(const Config& config,
                                                        Board& board,
                                                        int32_t rank) {
  ProcessCommConfig comm;
  comm.rank = rank;
  comm.world_size = board.shape().world_size;
  comm.node_size = board.shape().num_local;
  comm.deadline_ms = static_cast<int32_t>(std::min(config.watchdog_timeout_s, 1e6) * 1000);
  comm.peer_fds = {-1};
  if (config.layout.num_nodes > 1) {
    auto fds = connect_nodes(config, board, rank);
    if (!fds) {
      return fds.error();
    }
    comm.peer_fds = std::move(fds).value();
  }
  const auto path = text_of_supervisor(board, kNodeMemoryRound);
  if (!path) {
    return path.error();
  }
  comm.node_memory_fd = open(path.value().c_str(), O_RDWR | O_CLOEXEC);
  if (comm.node_memory_fd < 0) {
    return Error{ErrorCode::unavailable, "the node's memory for collectives is gone"};
  }
  const int fd = comm.node_memory_fd;
  auto made = make_process_communicator(std::move(comm));
  close(fd);
  return made;
}

}  // namespace

Result<std::unique_ptr<Runner>> make_group_rank_runner(const Config& config,
                                                       const std::filesystem::path& model_dir,
                                                       Board& board,
                                                       int32_t rank,
                                                       const PhaseFn& on_phase) {
  HADAL_RETURN_IF_ERROR(check_quantization(config, model_dir));
  RankProcess process;
  if (board.shape().world_size == 1) {
    process.comm = make_self_communicator();
  } else {
    auto comm = config.runner.device == DeviceType::cuda
                    ? make_gpu_communicator(config, board, rank)
                    : make_communicator(config, board, rank);
    if (!comm) {
      return comm.error();
    }
    process.comm = std::move(comm).value();
  }
  process.ranks_on_host = board.shape().num_local;
  process.agree_on_pages = [&board, rank](int32_t own) -> Result<int32_t> {
    const auto all = exchange(board, rank, kPagesRound, own);
    if (!all) {
      return all.error();
    }
    return *std::min_element(all.value().begin(), all.value().end());
  };
  if (rank == board.shape().first_rank) {
    log_info("Device: " + device_text(config));
  }
  ModelRunnerConfig runner = runner_config(config, model_dir);
  report_start(runner, on_phase);
  return make_rank_runner(runner, std::move(process));
}

}  // namespace hadal
