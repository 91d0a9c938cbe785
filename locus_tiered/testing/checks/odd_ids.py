"""Ids that backends have mixed up, mangled or choked on. Each group holds plain ones for them to be mixed up with."""

from __future__ import annotations

import hashlib

# Text that does not compress, as long ids in the wild do not: some databases measure the compressed key.
_LONG = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(64))

# fmt: off
SEPARATORS = (
    "a", "a/b", "a_b", "a:b", "a b", "a#b", "a.b", "a\\b", "a-b", "a%2Fb", "a+b", "a|b", "a,b", "a/b/c", "a//b",
    "/a", "a/", ":a", "a:", ":", "::", "/", "_",
)
DOTS = ("a", ".", "..", "...", "../a", "a/..", "./a", "a/../b", "b", ".a")
INTERNAL = (
    "x", "x.meta", "x.json", "x.meta.json", "x.tmp", "x.lock", "_latest", "latest", "_checkpoints", "_metadata",
    "index", "None", "null", "*", "%", "_", "?", "[x]", "x*", "'; --", "CON", "0", "lt-x", "lt-x-x",
)
LONG = (_LONG, f"{_LONG[:-1]}!", _LONG[:-1], f"!{_LONG[1:]}", "y" * 4096, "y" * 4095, _LONG[:300], _LONG[:256])
UNICODE = (
    "\u00e9", "e\u0301", "\u00c9", "e", "\u03a9", "\u2126", "\u0131", "\u0130", "i", "I", "\u65e5\u672c", "\u65e5",
    "\U0001f600", "\U0001f601", "\u202eabc", "abc", "\u200b", "a\u200b", "\u00df", "ss", "\u017f", "s", "\ufeffa",
)
BLANKS = ("a", " a", "a ", "a\n", "\na", "a\r\n", "a\t", " ", "\t", "\u00a0", "A", "a\u00a0", "a\x7f", "a\x1b[0m")
NULS = ("a\0b", "a\0", "a", "b", "ab", "\0")
SURROGATES = ("a\ud800", "a\udfff", "a\ud83d\ud83d", "a?", "a\ufffd", "a")
# fmt: on
