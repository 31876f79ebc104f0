// The rows are consistent with themselves, and none of SGLang's flags is missing.
#include "flag_table.h"

#include <set>
#include <sstream>
#include <string>

#include "catch.h"

using namespace hadal;

namespace {

// Every flag of `sglang.launch_server` in v0.4.3, and those that manifests took from later
// versions.
constexpr const char* kLaunchServerFlags =
    "model-path tokenizer-path served-model-name host port tp-size tensor-parallel-size nnodes "
    "node-rank dist-init-addr nccl-init-addr trust-remote-code context-length mem-fraction-static "
    "max-running-requests max-total-tokens chunked-prefill-size max-prefill-tokens schedule-policy "
    "schedule-conservativeness stream-interval stream-output random-seed watchdog-timeout "
    "download-dir revision base-gpu-id log-level log-level-http log-requests show-time-cost "
    "decode-log-interval enable-metrics api-key enable-cache-report chat-template kv-cache-dtype "
    "quantization dtype load-format json-model-override-args disable-radix-cache "
    "disable-cuda-graph disable-cuda-graph-padding cuda-graph-max-bs cuda-graph-bs "
    "disable-custom-all-reduce disable-overlap-schedule enable-mixed-chunk enable-dp-attention "
    "enable-ep-moe ep-size dp-size load-balance-method speculative-algorithm "
    "speculative-draft-model-path speculative-num-steps speculative-num-draft-tokens "
    "speculative-eagle-topk allow-auto-truncate skip-tokenizer-init tool-call-parser "
    "grammar-backend enable-hierarchical-cache file-storage-pth num-continuous-decode-steps "
    "enable-nccl-nvls enable-p2p-check enable-memory-saver delete-ckpt-after-loading "
    "enable-nan-detection constrained-json-whitespace-pattern dist-timeout reasoning-parser "
    "attention-backend pp-size page-size log-requests-level max-queued-requests "
    "enable-torch-compile "
    "torch-compile-max-bs device sampling-backend enable-flashinfer-mla "
    "triton-attention-reduce-in-fp32 triton-attention-num-kv-splits torchao-config "
    "disable-outlines-disk-cache disable-jump-forward enable-double-sparsity "
    "ds-channel-config-path ds-heavy-channel-num ds-heavy-token-num ds-heavy-channel-type "
    "ds-sparse-decode-threshold cpu-offload-gb lora-paths max-loras-per-batch lora-backend "
    "is-embedding enable-custom-logit-processor return-hidden-states prefill-only-one-req "
    "tokenizer-mode quantization-param-path disable-mla";

}  // namespace

TEST_CASE("flag table: every launch_server flag has a row", "[app]") {
  std::istringstream names(kLaunchServerFlags);
  std::string name;
  int count = 0;
  while (names >> name) {
    INFO(name);
    CHECK(find_flag(name) != nullptr);
    ++count;
  }
  CHECK(count > 100);
}

TEST_CASE("flag table: names are unique, and every refusal, limit and warning has a reason",
          "[app]") {
  std::set<std::string_view> names;
  for (const FlagSpec& flag : flag_table()) {
    INFO(flag.name);
    CHECK(names.insert(flag.name).second);
    const bool needs_reason = flag.handling == FlagHandling::refused ||
                              flag.handling == FlagHandling::limited ||
                              flag.handling == FlagHandling::warned;
    CHECK(needs_reason == !flag.reason.empty());
    CHECK((flag.handling == FlagHandling::limited) <= !flag.accepted.empty());
    CHECK((flag.handling == FlagHandling::honoured) <= !flag.help.empty());
    if (flag.group == FlagGroup::sglang_c) {
      CHECK(needs_reason);
    } else {
      CHECK(flag.handling != FlagHandling::warned);
    }
  }
}

TEST_CASE("flag table: flags whose absence would change answers are refused", "[app]") {
  for (const char* name : {"lora-paths",
                           "lora-backend",
                           "is-embedding",
                           "torchao-config",
                           "quantization-param-path",
                           "enable-custom-logit-processor",
                           "return-hidden-states",
                           "disable-mla"}) {
    INFO(name);
    REQUIRE(find_flag(name) != nullptr);
    CHECK(find_flag(name)->handling == FlagHandling::refused);
  }
}
