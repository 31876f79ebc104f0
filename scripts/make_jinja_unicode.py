#!/usr/bin/env python3
"""Writes src/text/jinja_unicode_tables.h: what Python's str knows about characters.

The chat template interpreter must upper-case, strip and repr text as Python does; these tables are
Python's own answers, run-length coded. Usage: make_jinja_unicode.py > src/text/jinja_unicode_tables.h
"""
import sys
import unicodedata


def ranges(test):
    found, start = [], None
    for cp in range(0x110000 + 1):
        hit = cp < 0x110000 and test(chr(cp))
        if hit and start is None:
            start = cp
        elif not hit and start is not None:
            found.append((start, cp - 1))
            start = None
    return found


def print_ranges(name, test):
    rows = ["{0x%X, 0x%X}" % r for r in ranges(test)]
    print(f"inline constexpr CodeRange {name}[] = {{")
    for i in range(0, len(rows), 5):
        print("    " + ", ".join(rows[i : i + 5]) + ",")
    print("};\n")


def mappings(convert):
    """Runs of code points at a fixed stride whose mapping adds a fixed delta; and the others."""
    runs, special = [], []
    for cp in range(0x110000):
        if 0xD800 <= cp < 0xE000:
            continue
        to = convert(chr(cp))
        if to == chr(cp):
            continue
        if len(to) > 1:
            special.append((cp, [ord(c) for c in to]))
            continue
        delta = ord(to) - cp
        if runs and runs[-1][3] == delta:
            first, last, stride, _ = runs[-1]
            if first == last and cp - last in (1, 2):
                runs[-1] = (first, cp, cp - last, delta)
                continue
            if first != last and cp - last == stride:
                runs[-1] = (first, cp, stride, delta)
                continue
        runs.append((cp, cp, 1, delta))
    return runs, special


def print_mappings(name, convert):
    runs, special = mappings(convert)
    print(f"inline constexpr CaseRun k{name}Runs[] = {{")
    rows = ["{0x%X, 0x%X, %d, %d}" % r for r in runs]
    for i in range(0, len(rows), 4):
        print("    " + ", ".join(rows[i : i + 4]) + ",")
    print("};\n")
    print(f"inline constexpr CaseSpecial k{name}Special[] = {{")
    rows = ["{0x%X, {%s}}" % (cp, ", ".join("0x%X" % c for c in to)) for cp, to in special]
    for i in range(0, len(rows), 3):
        print("    " + ", ".join(rows[i : i + 3]) + ",")
    print("};\n")


def is_cased(c):
    return c.isupper() or c.islower() or c.istitle()


def main():
    print(f"""\
// What Python's str knows about characters (Unicode {unicodedata.unidata_version}), so that templates
// upper-case, strip and quote text as Python does. Made by scripts/make_jinja_unicode.py.
#pragma once

#include <cstdint>

namespace hadal::jinja {{

struct CodeRange {{
  uint32_t first, last;
}};

/// Code points first, first + stride, ... last map to themselves plus delta.
struct CaseRun {{
  uint32_t first, last, stride;
  int32_t delta;
}};

struct CaseSpecial {{
  uint32_t from;
  uint32_t to[3];
}};

// clang-format off
""")
    print_ranges("kUnprintable", lambda c: not c.isprintable())
    print_ranges("kAlpha", str.isalpha)
    print_ranges("kAlnum", str.isalnum)
    print_ranges("kDigit", str.isdigit)
    print_ranges("kCased", is_cased)
    print_mappings("Upper", str.upper)
    print_mappings("Lower", str.lower)
    print_mappings("Title", str.title)
    print("// clang-format on\n\n}  // namespace hadal::jinja")


if __name__ == "__main__":
    sys.exit(main())
