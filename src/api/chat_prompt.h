// Messages to token ids through the checkpoint's template, or the continuation of a last assistant
// message.
#pragma once

#include <vector>

#include <hadal/text/chat_template.h>
#include <hadal/text/tokenizer.h>

#include "chat_request.h"

namespace hadal::api {

struct ChatPrompt {
  std::vector<TokenId> tokens;
  bool is_continued = false;  ///< the answer goes on where the last message ends
};

/// Errors are the client's (400): the template refuses the messages, or a limit is reached.
///
/// A last message of the assistant is continued unless `continue_final_message` is false: the
/// prompt is the conversation before it, opened for an answer, and then its text. A `<think>` that
/// the template opens by itself stays only if the text begins with one.
/// Tools that the template ignores are described in a system message instead.
ApiResult<ChatPrompt> build_chat_prompt(const ChatTemplate& chat_template,
                                        const Tokenizer& tokenizer,
                                        const ChatRequest& request);

}  // namespace hadal::api
