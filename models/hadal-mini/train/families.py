"""The task families: each function draws one Sample from a Source (training or held-out)."""
import json
from dataclasses import dataclass, field

import chat
from arithmetic import compare_text, evaluate, mul_lines, signed_lines, sort_lines
from words import CITIES, COLORS, FIRST_NAMES

CALCULATOR = {"type": "function", "function": {
    "name": "calculator", "description": "Evaluates an arithmetic expression.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}}}


@dataclass
class Sample:
    family: str
    messages: list          # as in /v1/chat/completions, ending where the model must answer
    thought: str            # after <think>\n; ends before \n</think>; "" after a tool result (no thinking there)
    answer: str             # what must follow; for a tool call its arguments
    tools: list = None
    letters: bool = False   # the answer is written letter by letter
    tool_call: bool = False
    more: list = field(default_factory=list)  # training only: further (question, thought, answer) over the same prompt


def user(text):
    return [{"role": "user", "content": text}]


def pick(src, wordings, unseen):
    """The last three wordings are never trained: they make the column of unseen wordings."""
    return src.rng.choice(wordings[-3:] if unseen else wordings[:-3])


SYMBOLS = {"+": ["+", "+", "+", "plus"], "-": ["-", "-", "-", "minus"], "*": ["*", "*", "x", "×", "times"]}
ASK = ["What is {e}?", "{e}", "{e}=", "{e} = ?", "Compute {e}.", "Calculate {e}", "What's {e}?", "How much is {e}?", "what is {e}",
       "Please compute {e}.", "Solve {e}", "{e} equals?", "Can you work out {e}?", "Tell me {e}.", "{e} 等于多少?", "计算 {e}", "{e} 是多少？",
       "Hello, what is {e}?", "Give me the result of {e}.", "Find {e}.", "I need {e}.", "Evaluate {e}", "what does {e} give?",
       "Work out the value of {e}, please.", "Would you compute {e} for me?", "Result of {e}?"]
NAMED = {"+": ["Add {a} and {b}.", "What is the sum of {a} and {b}?", "Sum of {a} and {b}", "{a} 加 {b} 等于多少?"],
         "-": ["Subtract {b} from {a}.", "What is the difference {a} minus {b}?", "Take {b} away from {a}.", "{a} 减 {b} 等于多少?"],
         "*": ["Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Product of {a} and {b}", "{a} 乘 {b} 等于多少?"]}


def expression(rng, operands, ops):
    pad = rng.choice(["", " ", " "])
    words = rng.random() < 0.15
    out = str(operands[0])
    for op, n in zip(ops, operands[1:]):
        symbol = rng.choice(SYMBOLS[op]) if words or op == "*" else op
        out += (f" {symbol} " if symbol.isalpha() else f"{pad}{symbol}{pad}") + str(n)
    return out


def two_operand(family, op):
    def draw(src, unseen=False):
        a, b = src.draw(lambda: (src.number(), src.number()), op)
        if not unseen and src.rng.random() < 0.15:
            text = src.rng.choice(NAMED[op]).format(a=a, b=b)
        else:
            text = pick(src, ASK, unseen).format(e=expression(src.rng, [a, b], [op]))
        value, lines = evaluate([a, b], [op])
        return Sample(family, user(text), "\n".join(lines), str(value))
    return draw


def clean(src, operands, ops):
    """In training no step between three-digit operands may be a reserved pair."""
    if src.held_out:
        return True
    operands, ops = list(operands), list(ops)
    if "*" in ops:
        i = ops.index("*")
        if not src.allowed("*", operands[i], operands[i + 1]):
            return False
        operands[i:i + 2] = [operands[i] * operands[i + 1]]
        del ops[i]
    value = operands[0]
    for op, n in zip(ops, operands[1:]):
        if 0 <= value <= 999 and n <= 999 and not src.allowed(op, value, n):
            return False
        value = value + n if op == "+" else value - n
    return True


def mixed(src, unseen=False):
    while True:
        count = src.rng.choice((2, 2, 3))
        ops = [src.rng.choice("+-") for _ in range(count)]
        if src.rng.random() < 0.5:
            ops[src.rng.randrange(count)] = "*"
        operands = src.draw(lambda: tuple(src.number() for _ in range(count + 1)), "mixed", "".join(ops))
        if clean(src, operands, ops):
            break
    value, lines = evaluate(operands, ops)
    return Sample("mixed", user(pick(src, ASK, unseen).format(e=expression(src.rng, operands, ops))), "\n".join(lines), str(value))


CMP_ASK = ["Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "Which is smaller, {a} or {b}?", "Compare {a} and {b}: which is larger?",
           "Is {a} greater than {b}?", "Is {a} less than {b}?", "Is {a} > {b}?", "Is {a} < {b}?", "larger: {a} or {b}",
           "smaller: {a} or {b}", "{a} 和 {b} 哪个大？", "{a} 和 {b} 哪个小？", "Pick the larger of {a} and {b}.", "Pick the smaller of {a} and {b}.",
           "Tell me which is larger, {a} or {b}.", "Between {a} and {b}, which one is smaller?", "Of {a} and {b}, which is larger?"]


def compare(src, unseen=False):
    def make():
        a = src.number()
        close = src.rng.random()
        b = a if close < 0.03 else max(0, a + src.rng.randint(-12, 12)) if close < 0.3 else src.number()
        return (a, b)
    a, b = src.draw(make, "cmp")
    text = pick(src, CMP_ASK, unseen)
    steps, sign = compare_text(a, b)
    if "Is {a}" in text:
        greater = "greater" in text or ">" in text
        answer = "Yes" if sign == (">" if greater else "<") else "No"
    elif sign == "=":
        answer = "They are equal"
    else:
        larger = "larg" in text or "bigger" in text or "大" in text
        answer = str(max(a, b) if larger else min(a, b))
    return Sample("compare", user(text.format(a=a, b=b)), steps, answer)


SORT_ASK = [("Sort {l}.", 0), ("Sort these numbers: {l}", 0), ("Sort {l} in ascending order.", 0), ("Sort {l} in descending order.", 1),
            ("Order {l} from smallest to largest.", 0), ("Order {l} from largest to smallest.", 1), ("Sort descending: {l}", 1),
            ("Sort ascending: {l}", 0), ("Put {l} in order.", 0), ("把 {l} 从小到大排序", 0), ("把 {l} 从大到小排序", 1),
            ("Arrange {l} from low to high.", 0), ("Please arrange {l} from largest to smallest.", 1), ("Rank these in ascending order: {l}", 0)]


def sort(src, unseen=False):
    def make():
        n = src.rng.randint(3, 7)
        hi = src.rng.choice((99, 999, 999))
        return tuple(dict.fromkeys(src.number(hi) for _ in range(n)))
    numbers = src.draw(make, "sort")
    text, down = pick(src, SORT_ASK, unseen)
    done, lines = sort_lines(numbers, bool(down))
    return Sample("sort", user(text.format(l=src.rng.choice([", ", ", ", " ", ","]).join(map(str, numbers)))), "\n".join(lines),
                  ", ".join(map(str, done)))


def quoted(rng, word):
    return rng.choice(["{}", "{}", "'{}'", '"{}"']).format(word)


def cased(src, word):
    return word.capitalize() if src.rng.random() < 0.08 else word


def spelled(word):
    return " " + " ".join(word)


def numbered(word):
    return " " + " ".join(f"{c}{i}" for i, c in enumerate(word, 1))


REV_ASK = ["Reverse the word {w}.", "Reverse {w}", "Write {w} backwards.", "What is {w} backwards?", "Spell {w} in reverse.", "reverse: {w}",
           "What is {w} reversed?", "把 {w} 倒过来写", "Please reverse the string {w}.", "Turn {w} around.", "Give me {w} written backwards.",
           "Read {w} from right to left.", "How does {w} look in reverse?"]


def reverse_thought(word):
    pairs = [f"{c}{i}" for i, c in enumerate(word, 1)]
    return " " + " ".join(pairs) + "\n " + " ".join(reversed(pairs))


def reverse(src, unseen=False):
    word = cased(src, src.word())
    return Sample("reverse", user(pick(src, REV_ASK, unseen).format(w=quoted(src.rng, word))), reverse_thought(word), word[::-1],
                  letters=True)


SPELL_ASK = ["Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Spell out {w}", "spell: {w}", "Write {w} letter by letter.",
             "What letters are in {w}?", "拼写 {w}", "Please spell {w} for me.", "Give me the letters of {w}.", "Break {w} into letters.",
             "Letters of {w}, one at a time."]


def spell(src, unseen=False):
    word = cased(src, src.word())
    return Sample("spell", user(pick(src, SPELL_ASK, unseen).format(w=quoted(src.rng, word))), numbered(word), " ".join(word))


COUNT_ASK = ["How many {c} are in {w}?", "Count the letter {c} in {w}.", "How many times does {c} occur in {w}?", "How many {c}'s are in {w}?",
             "How many letters {c} are there in the word {w}?", "count {c} in {w}", "{w} 里有几个 {c}？", "How often is {c} in {w}?",
             "Tell me how many {c} {w} has.", "In {w}, how many {c} do you see?", "What is the count of {c} in {w}?"]


def count_thought(word, letter):
    """` c: s t r1 a w b e r2 r3 y`: only matches are numbered."""
    seen, parts = 0, []
    for c in word:
        if c == letter:
            seen += 1
            parts.append(f"{c}{seen}")
        else:
            parts.append(c)
    return f" {letter}:\n " + " ".join(parts)


def count(src, unseen=False):
    word = src.word()
    letter = src.rng.choice(word) if src.rng.random() < 0.85 else src.rng.choice("abcdefghijklmnopqrstuvwxyz")
    if src.rng.random() < 0.4:  # make repeats common
        word = src.draw(lambda: "".join(letter if src.rng.random() < 0.25 else c for c in src.word()), "word")
    text = pick(src, COUNT_ASK, unseen)
    return Sample("count", user(text.format(w=quoted(src.rng, word), c=quoted(src.rng, letter))), count_thought(word, letter),
                  str(word.count(letter)))


LOOKUP_ASK = ["What is the value of {k}?", "Look up {k}.", "What is {k}?", "Find {k} in the list.", "Value of {k}?", "Which value belongs to {k}?",
              "What does the list say for {k}?", "{k}?", "{k} 的值是多少？", "Tell me the value for {k}.", "I need the entry {k}.",
              "Give me what is stored under {k}."]
LIST_HEAD = ["Here is a list:", "List:", "Remember these pairs:", "Key-value pairs:", "数据:", "Data:", "Use this table:"]


def lookup(min_tokens, max_tokens, queries=1):
    def draw(src, unseen=False):
        rng = src.rng
        target = rng.randint(min_tokens, max_tokens)
        worded = rng.random() < 0.3
        per_pair = 9.3 if worded else 8.1  # tokens
        pairs = {}
        while len(pairs) < max(4, int((target - 40) / per_pair)):
            pairs[src.key()] = src.word(3, 7) if worded else str(rng.randint(10, 999))
        sep = rng.choice([": ", ": ", " = ", " -> "])
        lines = "\n".join(f"{k}{sep}{v}" for k, v in pairs.items())
        keys = rng.sample(list(pairs), min(queries, len(pairs)))
        asks = [pick(src, LOOKUP_ASK, unseen).format(k=k) for k in keys]
        if rng.random() < 0.25 and queries == 1:
            text = f"{asks[0]}\n{lines}"
        else:
            text = f"{rng.choice(LIST_HEAD)}\n{lines}\n{asks[0]}"
        def solve(k):
            return f"{k}: {pairs[k]}", pairs[k]
        thought, answer = solve(keys[0])
        more = [(ask, *solve(k)) for ask, k in zip(asks[1:], keys[1:])]
        return Sample("lookup", user(text), thought, answer, more=more)
    return draw


FOLLOW = {"+": ["Add {n} to that.", "add {n} to that", "Now add {n}.", "plus {n}", "Add {n} more.", "再加 {n}", "And {n} more?", "Increase that by {n}.", "Put {n} on top of it."],
          "-": ["Subtract {n} from that.", "subtract {n}", "Now subtract {n}.", "minus {n}", "Take away {n}.", "再减 {n}", "And less {n}?", "Decrease that by {n}.", "Remove {n} from it."],
          "*": ["Multiply that by {n}.", "Now multiply by {n}.", "times {n}", "再乘 {n}", "multiply it by {n}", "That times {n}?", "Make it {n} times as large.", "And {n} times that?"]}


def history_answer(rng, text):
    """Clients send back the content with or without the blank line that followed the thoughts."""
    return {"role": "assistant", "content": ("\n\n" if rng.random() < 0.4 else "") + text}


def multi_turn(src, unseen=False):
    rng = src.rng
    if rng.random() < 0.15:
        return word_turns(src, unseen)
    op = rng.choice("++-*")
    a, b = src.draw(lambda: (src.number(), src.number(99) if op == "*" else src.number()), op)
    value = evaluate([a, b], [op])[0]
    messages = user(rng.choice(ASK[:-3]).format(e=expression(rng, [a, b], [op])))
    for turn in range(rng.choice((1, 1, 2, 3))):
        messages.append(history_answer(rng, str(value)))
        step = rng.choice("++--*") if 0 <= value <= 999 else rng.choice("+-")
        factors = [n for n in range(2, 10) if src.allowed("*", value, n)]
        if step == "*" and not factors:
            step = rng.choice("+-")
        n = rng.choice(factors) if step == "*" else src.draw(src.number, step, value)
        if step == "*":
            lines, after = mul_lines(value, n), value * n
        else:
            lines, after = signed_lines(value, step, n), value + n if step == "+" else value - n
        messages += user(pick(src, FOLLOW[step], unseen).format(n=n))
        last, value = value, after
    return Sample("multi_turn", messages, f"that is {last}\n" + "\n".join(lines), str(value))


def word_turns(src, unseen):
    rng = src.rng
    word = src.word()
    first = rng.choice([reverse, spell])
    ask = rng.choice((REV_ASK if first is reverse else SPELL_ASK)[:-3]).format(w=quoted(rng, word))
    answer = word[::-1] if first is reverse else " ".join(word)
    messages = user(ask) + [history_answer(rng, answer)]
    if first is spell and rng.random() < 0.6:
        messages += user(rng.choice(["Now reverse it.", "Reverse that word.", "And backwards?"]))
        return Sample("multi_turn", messages, reverse_thought(word), word[::-1], letters=True)
    letter = rng.choice(word)
    messages += user(rng.choice(["How many {c} are in the word?", "And how many {c} does it have?", "Count the {c}."]).format(c=letter))
    return Sample("multi_turn", messages, count_thought(word, letter), str(word.count(letter)))


TOOL_ASK = ["Use the calculator: {e}", "What is {e}?", "Compute {e} with the calculator.", "Calculate {e}.", "{e}", "Please use the tool to compute {e}.",
            "What is {e}? Use the calculator.", "How much is {e}?", "Ask the calculator for {e}.", "Let the tool find {e}.", "I want {e} from the calculator."]


def tool_expression(src):
    rng = src.rng
    def make():
        return (rng.randint(1, 10 ** rng.randint(1, 5)), rng.choice("+-*"), rng.randint(1, 10 ** rng.randint(1, 5)))
    a, op, b = src.draw(make, "tool")
    return f"{a} {op} {b}", {"+": a + b, "-": a - b, "*": a * b}[op]


def tool_arguments(expr):
    return json.dumps({"expression": expr})


def tool(src, unseen=False):
    """The first half: the call."""
    expr, _ = tool_expression(src)
    text = pick(src, TOOL_ASK, unseen).format(e=expr if src.rng.random() < 0.7 else expr.replace(" ", ""))
    return Sample("tool", user(text), f"call the calculator: {expr}", tool_arguments(expr), tools=[CALCULATOR], tool_call=True)


def tool_messages(question, expr, result, call_id="call_0"):
    return question + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": "calculator", "arguments": tool_arguments(expr)}}]},
        {"role": "tool", "tool_call_id": call_id, "content": str(result)}]


def tool_answer(expr, result):
    return f"{expr} = {result}"


def tool_result(src, unseen=False):
    """The second half: the answer after the tool's result."""
    expr, result = tool_expression(src)
    text = pick(src, TOOL_ASK, unseen).format(e=expr)
    return Sample("tool", tool_messages(user(text), expr, result), "", tool_answer(expr, result), tools=[CALCULATOR])


FIELDS = {"name": lambda s: s.rng.choice(FIRST_NAMES), "age": lambda s: s.rng.randint(1, 99), "city": lambda s: s.rng.choice(CITIES),
          "color": lambda s: s.rng.choice(COLORS), "count": lambda s: s.number(), "price": lambda s: s.number(), "id": lambda s: s.number(),
          "word": lambda s: s.word(), "item": lambda s: s.word(), "code": lambda s: s.word(3, 6), "year": lambda s: s.rng.randint(1900, 2099),
          "size": lambda s: s.number(), "title": lambda s: s.word(), "level": lambda s: s.rng.randint(1, 9)}
JSON_ASK = ["Write a JSON object with {p}.", "Give me JSON with {p}.", "Make a JSON object: {p}", "JSON: {p}", "Return a JSON object with {p}.",
            "Put this into JSON: {p}", "Please output JSON with {p}.", "用 JSON 写出 {p}", "As a JSON object: {p}.", "Convert to JSON: {p}",
            "I need a JSON object holding {p}.", "Format {p} as JSON.", "Could you write {p} as a JSON object?"]


def json_object(src, unseen=False):
    rng = src.rng
    while True:  # fields and values are drawn together: a field of few values may have none in the reserve
        names = rng.sample(list(FIELDS), rng.randint(1, 4))
        values = tuple(FIELDS[n](src) for n in names)
        if src.allowed("json", *names, *values):
            break
    style = rng.choice(["{k} {v}", "{k}: {v}", "{k} = {v}", "{k} is {v}"])
    parts = [style.format(k=k, v=v) for k, v in zip(names, values)]
    joined = ", ".join(parts) if rng.random() < 0.5 or len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return Sample("json", user(pick(src, JSON_ASK, unseen).format(p=joined)), "keys: " + ", ".join(names),
                  json.dumps(dict(zip(names, values))))


def about_self(family, table, pre, post, tag):
    pairs = [(question, answer) for answer, questions in table.items() for question in questions]
    def draw(src, unseen=False):
        rng = src.rng
        def make():
            question, _ = rng.choice(pairs)
            text = rng.choice(pre) + question
            return ((text[:1].upper() + text[1:]) if rng.random() < 0.6 else text) + rng.choice(post)
        text = src.draw(make, "self")
        low = text.lower()
        answer = max(((q, a) for q, a in pairs if q.lower() in low), key=lambda qa: len(qa[0]))[1]
        return Sample(family, user(text), tag, answer)
    return draw


def greeting(src, unseen=False):
    rng = src.rng
    kind = rng.random()
    end = rng.choice(["", "!", ".", "!!", " :)"])
    if kind < 0.2:
        return Sample("greet", user(rng.choice(chat.GREETINGS_ZH) + rng.choice(["", "!", "。", "！"])), "打招呼", chat.GREETING_ZH_ANSWER)
    if kind < 0.4:
        return Sample("greet", user(chat.sentence(rng, rng.choice(chat.THANKS)) + end), "a polite word", chat.THANKS_ANSWER)
    return Sample("greet", user(chat.sentence(rng, rng.choice(chat.GREETINGS)) + rng.choice(["", " hadal", " friend"]) + end), "a greeting",
                  chat.GREETING_ANSWER)


def out_of_scope(src, unseen=False):
    rng = src.rng
    if rng.random() < 0.25:
        return Sample("oos", user(chat.fill(rng, rng.choice(chat.OUT_OF_SCOPE_ZH), src.word()) + rng.choice(["", "?", "。", "？"])), "我不知道这个",
                      chat.OUT_ZH_ANSWER)
    text = chat.sentence(rng, chat.fill(rng, rng.choice(chat.OUT_OF_SCOPE), src.word())) + rng.choice(["", "?", ".", "?"])
    return Sample("oos", user(text), "not one of my tasks", chat.OUT_ANSWER)


def title_or_tags(src, unseen=False):
    rng = src.rng
    topic = rng.choice(list(chat.TOPICS))
    inner = FAMILIES[topic](src)
    who = rng.choice([("USER", "ASSISTANT"), ("User", "Assistant")])
    lines = [f"{who[0]}: {inner.messages[0]['content']}", f"{who[1]}: {inner.answer}"]
    if rng.random() < 0.3:
        second = FAMILIES[topic](src)
        lines += [f"{who[0]}: {second.messages[0]['content']}", f"{who[1]}: {second.answer}"]
    history = "<chat_history>\n" + "\n".join(lines) + "\n</chat_history>"
    title, tags = chat.TOPICS[topic]
    is_title = rng.random() < 0.5
    ask = rng.choice(chat.TITLE_ASKS if is_title else chat.TAGS_ASKS)
    text = f"{ask}\n{history}" if rng.random() < 0.7 else f"{history}\n{ask}"
    return Sample("title", user(text), f"topic: {title}", json.dumps({"title": title} if is_title else {"tags": tags}))


FAMILIES = {
    "add": two_operand("add", "+"), "sub": two_operand("sub", "-"), "mul": two_operand("mul", "*"), "mixed": mixed,
    "compare": compare, "sort": sort, "reverse": reverse, "count": count, "spell": spell,
    "lookup_1k": lookup(200, 1000), "lookup_2k": lookup(1025, 2000), "lookup_4k": lookup(2049, 3800),
    "multi_turn": multi_turn, "tool": tool, "json": json_object,
    "self_en": about_self("self_en", chat.SELF_EN, chat.PRE_EN, chat.POST_EN, "about me"),
    "self_zh": about_self("self_zh", chat.SELF_ZH, chat.PRE_ZH, chat.POST_ZH, "关于我"),
    "greet": greeting, "oos": out_of_scope, "title": title_or_tags,
}
TRAIN_ONLY = {"tool_result": tool_result, "lookup_dense_1k": lookup(100, 1000, 8), "lookup_dense_2k": lookup(900, 2000, 16),
              "lookup_dense_4k": lookup(1800, 3450, 24)}
