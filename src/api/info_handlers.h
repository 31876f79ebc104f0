// Everything that answers without generating: models, probes, information, tokens.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "http_head.h"
#include "router.h"
#include "server_core.h"

namespace hadal::api {

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> fields = {};
  Gate gate = Gate::none;  ///< that refused
};

HttpReply error_reply(const ApiError& error);
/// The reply to any route but generation and health_generate. Needs a model, except on the probes
/// and metrics.
HttpReply answer_info(ServerCore& core,
                      RouteId route,
                      const RequestHead& head,
                      std::string_view body);

}  // namespace hadal::api
