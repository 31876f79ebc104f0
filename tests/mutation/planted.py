"""The bugs of the radix and scheduler model, planted in the C++ source.

Each is a list of (file, anchor, replacement). An anchor must occur exactly once; when the source has
moved on, the script stops and says which one to write anew. `target` is the test that must notice.
"""

GATE = "src/sched/queue_gate.cpp"
RADIX = "src/sched/radix_cache.cpp"
RETIRE = "src/sched/retire.cpp"
SCHEDULER = "src/sched/scheduler.cpp"
PLANNER = "src/sched/planner.cpp"
ADMISSION = "src/sched/admission.cpp"

PLANTED = {
    # A request that leaves the queue gets no answer.
    "silent_drop": [(RETIRE, "  events.push_back(std::move(event));\n  if (sequence.state == SequenceState::waiting) {",
                     "  if (sequence.state != SequenceState::waiting)\n    events.push_back(std::move(event));\n"
                     "  if (sequence.state == SequenceState::waiting) {")],
    # The queue takes everything.
    "unbounded_queue": [(GATE, "  if (total_.num_requests >= scale * limits_.max_requests)",
                         "  if (total_.num_requests < 0)")],
    # A second terminal event for a request that was cancelled twice.
    "double_end": [(SCHEDULER, "  if (found == impl_->sequences.end() || found->second->state == SequenceState::retiring)\n    return;\n",
                    "  if (found == impl_->sequences.end())\n    return;\n"
                    "  if (found->second->state == SequenceState::retiring) {\n"
                    "    TokenEvent again = impl_->make_event(*found->second);\n"
                    "    again.finish = FinishReason::cancelled;\n"
                    "    impl_->events.push_back(std::move(again));\n    return;\n  }\n")],
    # A cancelled request never lets go of its prefix.
    "abort_keeps_lock": [(SCHEDULER, "  if (found == impl_->sequences.end() || found->second->state == SequenceState::retiring)\n    return;\n",
                          "  if (found == impl_->sequences.end() || found->second->state == SequenceState::retiring)\n    return;\n"
                          "  static auto& kept = *new std::vector<Lease>;\n"
                          "  if (const Lease& lease = found->second->lease; lease.is_held()) {\n"
                          "    PrefixMatch match;\n    match.tip = lease.tip();\n    match.num_pages = lease.num_pages();\n"
                          "    kept.push_back(impl_->cache.acquire(found->second->request.cache_namespace, match));\n  }\n")],
    # A cancelled request's pages are free while the device still writes to them.
    "free_inflight": [(SCHEDULER, "  return sequence.last_step > retired_step_id;", "  return sequence.last_step > retired_step_id + 1;")],
    # The second of two equal pages is forgotten.
    "dup_leak": [(RETIRE, "      pages.free(page);\n      if (key.size() == kPage)", "      if (key.size() == kPage)")],
    # Pages behind the last valid token are forgotten.
    "tail_leak": [(RETIRE, "  for (; next < sequence.pages.size(); ++next)\n    pages.free(sequence.pages[next]);\n", "")],
    # A node that enters a leased path is not leased (nodes never split here: this is where one enters a path).
    "split_no_ref": [(RADIX, "  added.refs = 1;", "  added.refs = 0;")],
    # A page whose second half differs counts as a whole page.
    "unaligned_split": [(RADIX, "    if (best.num_common < kPageTokens) {", "    if (best.num_common < kPageTokens / 2) {")],
    # A leased page stays in the order of eviction, and eviction takes it.
    "evict_locked": [(RADIX, "  if (pinned.refs++ == 0) {\n    if (pinned.page != kNoPage)\n      unlink_evictable(id);\n    else\n",
                      "  if (pinned.refs++ == 0) {\n    if (pinned.page == kNoPage)\n"),
                     (RADIX, "  if (unpinned.page != kNoPage)\n    push_evictable(id);\n",
                      "  if (unpinned.page != kNoPage) {\n    unlink_evictable(id);\n    push_evictable(id);\n  }\n"),
                     (RADIX, "  ++num_on_device_;\n  ++version_;\n", "  ++num_on_device_;\n  ++version_;\n  push_evictable(id);\n"),
                     (RADIX, '  HADAL_CHECK(removed.refs == 0, "radix cache: removal of a leased page");\n', "")],
    # All tenants share one tree.
    "ignore_salt": [(RADIX, "  const auto found = namespace_index_.find(name_space);", "  const auto found = namespace_index_.find(std::string_view{});"),
                    (RADIX, "  auto found = namespace_index_.find(name);", "  name = {};\n  auto found = namespace_index_.find(name);")],
    # A prompt that is cached whole leaves no token to compute.
    "match_all": [(ADMISSION, "tokens.first(tokens.size() - 1)", "tokens")],
    # A sequence is retracted while the device works on it.
    "retract_inflight": [(PLANNER, "    if (!in_flight.empty())\n      return false;\n    make_room", "    make_room"),
                         (RETIRE, "  HADAL_CHECK(in_flight.empty() && sequence.num_pending_samples == 0,\n"
                          '              "scheduler: retraction of a sequence in flight");\n', "")],
    # The token of a step in flight follows the terminal event.
    "late_token": [(RETIRE, "  if (sequence.state != SequenceState::running)\n    return;  // ended", "  if (false)\n    return;  // ended")],
    # A retracted sequence is in no queue.
    "retract_lost": [(RETIRE, "  enqueue(sequence);\n}", "}")],
}

TARGETS = {"unbounded_queue": "sched_test"}
