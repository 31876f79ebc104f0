// `hadal rank`: one rank of a node, started by the supervisor of `hadal serve` or by hand. Rank 0
// serves; every other rank follows its plans.
#include <csignal>

#include "assembly.h"
#include "commands.h"
#include "exit_code.h"
#include "group_setup.h"
#include "rank_seat.h"

namespace hadal {
namespace {

int fail(int code, const Error& error) {
  log_error(error.message);
  return code;
}

int follow(const Config& config, const Environment& environment, RankSeat& seat) {
  std::filesystem::path model_dir;
  if (!config.runner.null_step_us) {
    auto found = find_model_dir(config.model.query, environment);
    if (!found) {
      return fail(model_exit_code(found.error()), found.error());
    }
    model_dir = std::move(found).value();
  }
  auto runner = seat.make_runner(config, model_dir, 0);
  if (!runner) {
    return fail(model_exit_code(runner.error()), runner.error());
  }
  if (Status ready = seat.wait_all_ready(); !ready) {
    return fail(group_exit_code(seat.board().end_reason()), ready.error());
  }
  log_info("Ready");
  if (Status followed = follow_plans(*runner.value(), seat.board(), seat.rank()); !followed) {
    const EndReason reason = seat.board().end_reason();
    return fail(reason == EndReason::none ? kExitInternal : group_exit_code(reason),
                followed.error());
  }
  return group_exit_code(seat.board().end_reason());
}

}  // namespace

int run_rank(const Config& config, const Environment& environment) {
  auto seat = RankSeat::take(config);
  if (!seat) {
    return fail(kExitUsage, seat.error());
  }
  if (seat.value()->rank() == 0) {
    return serve_model(config, environment, seat.value().get());
  }
  // Only rank 0 decides when to stop.
  std::signal(SIGTERM, SIG_IGN);
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  return follow(config, environment, *seat.value());
}

}  // namespace hadal
