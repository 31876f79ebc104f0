// Runs a parsed template over a context and gives the prompt.
#pragma once

#include <hadal/base/result.h>
#include <hadal/text/chat_template.h>

#include "jinja_ast.h"

namespace hadal::jinja {

/// `context` must be an object. Pure but for strftime_now, which reads the clock.
Result<PromptText> run(const Template& parsed,
                       const TemplateValue& context,
                       const TemplateLimits& limits);

}  // namespace hadal::jinja
