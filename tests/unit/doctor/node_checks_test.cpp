// A machine that is all right gives no failure; each planted fault gives exactly one line, with
// what to change.
#include <fstream>

#include <hadal/doctor/doctor.h>

#include "catch.h"

#include <stdlib.h>

using namespace hadal;
namespace fs = std::filesystem;

namespace {

class TemporaryRoot {
 public:
  TemporaryRoot() {
    std::string pattern = (fs::temp_directory_path() / "hadal-doctor-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }

  TemporaryRoot(const TemporaryRoot&) = delete;
  TemporaryRoot& operator=(const TemporaryRoot&) = delete;

  ~TemporaryRoot() { fs::remove_all(path_); }

  const fs::path& path() const { return path_; }

  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text << "\n";
  }

 private:
  fs::path path_;
};

/// Node 1 of the article's two: eight H100, RoCE, everything right.
struct Machine {
  Machine() {
    root.write("sys/class/net/eth0/mtu", "9000");
    root.write("sys/class/net/eth0/speed", "100000");
    root.write("proc/self/status", "Name:\thadal\nCapEff:\t0000000000000000");
    for (const char* device : {"mlx5_0", "mlx5_1"}) {
      const std::string port = std::string("sys/class/infiniband/") + device + "/ports/1/";
      root.write(port + "state", "4: ACTIVE");
      root.write(port + "rate", "400 Gb/sec (4X NDR)");
      root.write(port + "link_layer", "Ethernet");
      const char* types[] = {"IB/RoCE v1", "RoCE v2", "IB/RoCE v1", "RoCE v2"};
      for (int i = 0; i < 4; ++i) {
        root.write(port + "gids/" + std::to_string(i), "fe80:0000:0000:0000:0000:0000:0000:000a");
        root.write(port + "gid_attrs/types/" + std::to_string(i), types[i]);
      }
      root.write(port + "gids/4", "0000:0000:0000:0000:0000:0000:0000:0000");
    }
    root.write("dev/infiniband/uverbs0", "");
    root.write("dev/shm/.keep", "");
    config.num_nodes = 2;
    config.node_rank = 1;
    config.ranks_per_node = 8;
    config.leader_host = "leader.svc";
    config.leader_port = 20000;
    config.listens = {{"--port", "0.0.0.0", 8000}};
    config.open_files_needed = 4096;
    config.uses_gpus = true;
    config.driver_needed = 580;
    config.toolkit = "CUDA 13.0";
    plant_probes();
  }

  void plant_probes() {
    probes.root = root.path();
    probes.resolve = [](const std::string&) {
      return Result<std::vector<std::string>>(std::vector<std::string>{"10.0.0.1"});
    };
    probes.source_address = [](const std::string&) { return Result<std::string>("10.0.0.2"); };
    probes.interfaces = [] {
      return std::vector<NetworkInterface>{{"docker0", {"172.17.0.1"}, true},
                                           {"eth0", {"10.0.0.2"}, true},
                                           {"lo", {"127.0.0.1"}, true}};
    };
    probes.try_listen = [](const Endpoint&) { return ok_status(); };
    probes.memlock_bytes = [] { return int64_t{-1}; };
    probes.open_files = [] { return int64_t{1048576}; };
    probes.space = [](const fs::path& path) -> std::optional<DoctorProbes::Space> {
      CHECK(path.filename() == "shm");
      return DoctorProbes::Space{int64_t{16} << 30, int64_t{16} << 30};
    };
    probes.wall_clock_us = [] { return int64_t{0}; };
    probes.clock_is_synchronised = [] { return std::optional<bool>(true); };
    view.driver_version = "580.95.05";
    view.gpus.assign(8, Gpu{"NVIDIA H100 80GB HBM3", int64_t{80} << 30});
    probes.gpus = [this] { return view; };
  }

  /// The only failure.
  Finding only_failure() const {
    std::vector<Finding> failures;
    std::string text;
    for (const Finding& finding : check_node(config, probes)) {
      text += to_text(finding);
      if (finding.level == FindingLevel::failed) {
        failures.push_back(finding);
      }
    }
    INFO(text);
    REQUIRE(failures.size() == 1);
    CHECK_FALSE(failures.front().remedy.empty());
    CHECK(failures.front().remedy.find('\n') == std::string::npos);
    return failures.front();
  }

  void expect(const std::string& check, const std::string& text, const std::string& remedy) const {
    const Finding finding = only_failure();
    CHECK(finding.check == check);
    CHECK_THAT(finding.text, Catch::Matchers::Contains(text));
    CHECK_THAT(finding.remedy, Catch::Matchers::Contains(remedy));
  }

  TemporaryRoot root;
  DoctorConfig config;
  DoctorProbes probes;
  GpuView view;
};

}  // namespace

TEST_CASE("doctor: a sound node has no failure and picks RDMA", "[doctor]") {
  const Machine machine;
  CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  const TransportChoice choice = choose_transport(machine.config, machine.probes);
  CHECK(choice.is_rdma);
  CHECK(choice.between_nodes == "NCCL over RoCE mlx5_0:1,mlx5_1:1");
  CHECK(choice.in_node == "NCCL over NVLink or PCIe peer access");
}

TEST_CASE("doctor: a CPU node needs neither GPU nor RDMA nor memlock", "[doctor]") {
  Machine machine;
  machine.config.uses_gpus = false;
  machine.probes.memlock_bytes = [] { return int64_t{8} << 20; };
  fs::remove_all(machine.root.path() / "sys/class/infiniband");
  machine.view = {.library_error = "libnvidia-ml.so.1 is not there",
                  .driver_version = {},
                  .gpus = {},
                  .without_peer_access = {}};
  CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  CHECK(choose_transport(machine.config, machine.probes).between_nodes == "TCP");
  machine.config.num_nodes = 1;
  machine.config.node_rank = 0;
  CHECK(choose_transport(machine.config, machine.probes).between_nodes.empty());
}

TEST_CASE("doctor: names and routes", "[doctor]") {
  Machine machine;
  SECTION("a name that does not resolve") {
    machine.probes.resolve = [](const std::string&) {
      return Result<std::vector<std::string>>(
          Error{ErrorCode::not_found, "Name or service not known"});
    };
    machine.expect("name", "'leader.svc' does not resolve: Name", "publishNotReadyAddresses");
  }
  SECTION("node 0 behind a virtual address") {
    machine.config.node_rank = 0;
    machine.expect("name", "10.0.0.1, expected an address of this node", "headless Service");
  }
  SECTION("node 0 at its own address") {
    machine.config.node_rank = 0;
    machine.probes.resolve = [](const std::string&) {
      return Result<std::vector<std::string>>(std::vector<std::string>{"fd00::9", "10.0.0.2"});
    };
    CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  }
  SECTION("no route") {
    machine.probes.source_address = [](const std::string&) {
      return Result<std::string>(Error{ErrorCode::unavailable, "Network is unreachable"});
    };
    machine.expect("interface", "no route to node 0 at 10.0.0.1", "attach this node");
  }
  SECTION("the wrong interface") {
    machine.config.nccl.socket_ifname = "docker0";
    machine.expect("interface", "through eth0 (10.0.0.2)", "set NCCL_SOCKET_IFNAME=eth0");
  }
  SECTION("an exclusion list that excludes the route") {
    machine.config.nccl.socket_ifname = "^lo,eth";
    machine.expect("interface", "'^lo,eth'", "set NCCL_SOCKET_IFNAME=eth0");
  }
  SECTION("lists that take the route") {
    for (const char* list : {"eth", "=eth0", "^lo,docker", "ib0,eth0"}) {
      machine.config.nccl.socket_ifname = list;
      CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
    }
  }
}

TEST_CASE("doctor: limits of the node", "[doctor]") {
  Machine machine;
  SECTION("a port that is taken") {
    machine.probes.try_listen = [](const Endpoint& endpoint) {
      return endpoint.port == 8000 ? Status(Error{ErrorCode::unavailable, "Address already in use"})
                                   : ok_status();
    };
    machine.expect("port", "--port: cannot listen on 0.0.0.0:8000: Address", "sport = :8000");
  }
  SECTION("the leader's port is taken") {
    machine.config.node_rank = 0;
    machine.probes.resolve = [](const std::string&) {
      return Result<std::vector<std::string>>(std::vector<std::string>{"10.0.0.2"});
    };
    machine.probes.try_listen = [](const Endpoint& endpoint) {
      return endpoint.port == 20000
                 ? Status(Error{ErrorCode::unavailable, "Address already in use"})
                 : ok_status();
    };
    machine.expect("port", "--dist-init-addr: cannot listen on 20000", "another --dist-init-addr");
  }
  SECTION("small memlock") {
    machine.probes.memlock_bytes = [] { return int64_t{8} << 20; };
    machine.expect("memlock", "8 MiB, expected unlimited", "IPC_LOCK");
  }
  SECTION("small memlock under IPC_LOCK") {
    machine.probes.memlock_bytes = [] { return int64_t{8} << 20; };
    machine.root.write("proc/self/status", "CapEff:\t0000000000004000");
    CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  }
  SECTION("small /dev/shm") {
    machine.probes.space = [](const fs::path&) -> std::optional<DoctorProbes::Space> {
      return DoctorProbes::Space{int64_t{64} << 20, int64_t{64} << 20};
    };
    machine.expect("/dev/shm", "64 MiB free of 64 MiB, expected at least 1.0 GiB", "emptyDir");
  }
  SECTION("full /dev/shm") {
    machine.probes.space = [](const fs::path&) -> std::optional<DoctorProbes::Space> {
      return DoctorProbes::Space{int64_t{64} << 30, int64_t{1} << 20};
    };
    machine.expect("/dev/shm", "1 MiB free of 64.0 GiB", "left in /dev/shm");
  }
  SECTION("few open files") {
    machine.probes.open_files = [] { return int64_t{1024}; };
    machine.expect("open files", "1024, expected at least 4096", "ulimit -Hn 4096");
  }
}

TEST_CASE("doctor: GPUs", "[doctor]") {
  Machine machine;
  SECTION("no GPU in the container") {
    machine.view.library_error = "libnvidia-ml.so.1 is not there";
    machine.expect("GPU", "libnvidia-ml.so.1 is not there", "nvidia.com/gpu");
  }
  SECTION("too few GPUs") {
    machine.view.gpus.resize(4);
    machine.expect("GPU", "4 visible, expected GPUs 0..7", "request 8 GPUs");
  }
  SECTION("a driver that is too old") {
    machine.view.driver_version = "550.54.15";
    machine.expect("GPU driver", "550.54.15, expected 580 or newer for CUDA 13.0", "cuda-compat");
  }
  SECTION("peer access off by variable") {
    machine.config.nccl.p2p_disable = "1";
    machine.expect("GPU peers", "NCCL_P2P_DISABLE is 1", "unset NCCL_P2P_DISABLE");
  }
  SECTION("two GPUs that cannot reach each other") {
    machine.view.without_peer_access = {{2, 5, "chipset not supported"}};
    machine.expect("GPU peers", "GPU 2 cannot reach GPU 5: chipset not supported", "ACS");
  }
}

TEST_CASE("doctor: RDMA", "[doctor]") {
  Machine machine;
  const std::string port = "sys/class/infiniband/mlx5_0/ports/1/";
  SECTION("no device") {
    fs::remove_all(machine.root.path() / "sys/class/infiniband");
    machine.expect("RDMA device", "none under /sys/class/infiniband", "rdma/ib");
    CHECK(choose_transport(machine.config, machine.probes).between_nodes == "NCCL over TCP");
  }
  SECTION("TCP is meant") {
    fs::remove_all(machine.root.path() / "sys/class/infiniband");
    machine.config.nccl.ib_disable = "1";
    CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  }
  SECTION("another device is named") {
    machine.config.nccl.ib_hca = "mlx5_9";
    machine.expect("RDMA device", "'mlx5_9', but this node has", "NCCL_IB_HCA=mlx5_0,mlx5_1");
  }
  SECTION("a device without its character device") {
    fs::remove_all(machine.root.path() / "dev/infiniband");
    machine.expect("RDMA device", "has no uverbs device", "pass /dev/infiniband");
  }
  SECTION("a port that is down") {
    machine.config.nccl.ib_hca = "=mlx5_0:1";
    machine.root.write(port + "state", "1: DOWN");
    machine.expect("RDMA device", "mlx5_0:1 is DOWN, expected ACTIVE", "bring the port up");
  }
  SECTION("a GID of the wrong type") {
    machine.config.nccl.ib_gid_index = "2";
    machine.expect("RDMA GID", "2, which on mlx5_0:1 is 'IB/RoCE v1'", "NCCL_IB_GID_INDEX=3");
  }
  SECTION("a GID index that is empty") {
    machine.config.nccl.ib_gid_index = "4";
    machine.expect("RDMA GID", "is empty, expected 'RoCE v2'", "NCCL_IB_GID_INDEX=3");
  }
  SECTION("no routable GID at all") {
    machine.config.nccl.ib_hca = "mlx5_0";
    for (int i = 0; i < 4; ++i) {
      machine.root.write(port + "gid_attrs/types/" + std::to_string(i), "IB/RoCE v1");
    }
    machine.expect("RDMA GID", "no GID of type 'RoCE v2'", "IP address");
  }
  SECTION("InfiniBand needs no RoCE GID") {
    machine.root.write(port + "link_layer", "InfiniBand");
    machine.config.nccl.ib_hca = "mlx5_0";
    machine.config.nccl.ib_gid_index = "0";
    CHECK(count_failures(check_node(machine.config, machine.probes)) == 0);
  }
}

TEST_CASE("doctor: this machine can be probed", "[doctor]") {
  const DoctorProbes probes = system_probes();
  DoctorConfig config;
  config.listens = {{"--port", "127.0.0.1", 0}};
  std::string text;
  for (const Finding& finding : check_node(config, probes)) {
    text += to_text(finding);
  }
  INFO(text);
  CHECK_THAT(text, Catch::Matchers::Contains("open files"));
  CHECK(probes.resolve("localhost"));
  CHECK_FALSE(probes.resolve("no-such-name.invalid"));
  const auto source = probes.source_address("127.0.0.1");
  REQUIRE(source);
  CHECK(source.value() == "127.0.0.1");
  CHECK(probes.wall_clock_us() > int64_t{1'600'000'000'000'000});
}
