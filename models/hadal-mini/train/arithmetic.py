"""Written-out arithmetic: the chains of thought. Digit by digit, least significant first.

A column reads `a+b+carry=CD`: C is the next carry (borrow), D the result digit. `r:` collects the digits most significant
first, `>` gives the number without leading zeros.
"""


def reversed_digits(n, width):
    return str(n).zfill(width)[::-1]


def add_lines(a, b):
    """a, b >= 0."""
    width = max(len(str(a)), len(str(b)))
    ra, rb = reversed_digits(a, width), reversed_digits(b, width)
    lines, carry, digits = [f"{a}+{b}", f"{ra},{rb}"], 0, []
    for x, y in zip(ra, rb):
        total = int(x) + int(y) + carry
        lines.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
        digits.append(str(total % 10))
    digits.append(str(carry))
    lines.append(f"r:{''.join(reversed(digits))}>{a + b}")
    return lines


def compare_text(a, b):
    """`045?678:0<6`: digit by digit from the most significant until one differs; returns text and sign."""
    width = max(len(str(a)), len(str(b)))
    pa, pb = str(a).zfill(width), str(b).zfill(width)
    steps = []
    for x, y in zip(pa, pb):
        sign = "<" if x < y else ">" if x > y else "="
        steps.append(f"{x}{sign}{y}")
        if sign != "=":
            break
    return f"{pa}?{pb}:" + ",".join(steps), sign


def sub_lines(a, b):
    """a - b for a, b >= 0, result may be negative."""
    text, sign = compare_text(a, b)
    lines = [f"{a}-{b}", text]
    if sign == "=":
        return lines + ["r:0>0"]
    big, small = (a, b) if sign == ">" else (b, a)
    if sign == "<":
        lines.append(f"-({big}-{small})")
    width = len(str(big))
    ra, rb = reversed_digits(big, width), reversed_digits(small, width)
    lines.append(f"{ra},{rb}")
    borrow, digits = 0, []
    for x, y in zip(ra, rb):
        d = int(x) - int(y) - borrow
        out, digit = (1, d + 10) if d < 0 else (0, d)
        lines.append(f"{x}-{y}-{borrow}={out}{digit}")
        borrow = out
        digits.append(str(digit))
    lines.append(f"r:{''.join(reversed(digits))}>{a - b}")
    return lines


def signed_lines(a, op, b):
    """a may be negative, b >= 0, op + or -: reduced to an addition or a subtraction of non-negative numbers."""
    if a >= 0:
        return add_lines(a, b) if op == "+" else sub_lines(a, b)
    head = f"{a}{op}{b}"
    if op == "-":
        inner = add_lines(-a, b)
        return [f"{head}=-({-a}+{b})"] + inner + [f">{a - b}"]
    return [f"{head}={b}-{-a}"] + sub_lines(b, -a)


def mul_lines(a, b):
    """a, b >= 0: one row a digit of b, then the rows are added."""
    lines, rows = [f"{a}*{b}"], []
    ra = str(a)[::-1]
    for shift, d in enumerate(str(b)[::-1]):
        lines.append(f"{ra}*{d}")
        carry, digits = 0, []
        for x in ra:
            total = int(x) * int(d) + carry
            lines.append(f"{x}*{d}+{carry}={total:02d}")
            carry = total // 10
            digits.append(str(total % 10))
        digits.append(str(carry))
        rows.append(a * int(d) * 10 ** shift)
        zeros = "0" * shift
        lines.append(f"r:{''.join(reversed(digits))}{zeros}>{rows[-1]}")
    total = rows[0]
    for row in rows[1:]:
        lines += add_lines(total, row)
        total += row
    return lines


def evaluate(operands, ops):
    """Value and thought lines of `operands[0] ops[0] operands[1] ...`; operands >= 0, at most one `*`."""
    operands, ops, lines = list(operands), list(ops), []
    if len(ops) > 1:
        pretty = str(operands[0]) + "".join(f"{o}{n}" for o, n in zip(ops, operands[1:]))
        lines.append(pretty)
    if "*" in ops:
        i = ops.index("*")
        lines += mul_lines(operands[i], operands[i + 1])
        operands[i:i + 2] = [operands[i] * operands[i + 1]]
        del ops[i]
        if len(ops) >= 1:
            lines.append(str(operands[0]) + "".join(f"{o}{n}" for o, n in zip(ops, operands[1:])))
    value = operands[0]
    for op, n in zip(ops, operands[1:]):
        lines += signed_lines(value, op, n)
        value = value + n if op == "+" else value - n
    return value, lines


def sort_lines(numbers, descending):
    """Insertion sort, one line an insertion, numbers padded to equal width."""
    width = max(len(str(n)) for n in numbers)
    done, lines = [], ["down" if descending else "up", " ".join(str(n).zfill(width) for n in numbers)]
    for n in numbers:
        done = sorted(done + [n], reverse=descending)
        lines.append(str(n).zfill(width) + ":" + " ".join(str(m).zfill(width) for m in done))
    return done, lines
