"""``${NAME}``, ``${NAME:-default}``, ``${file:/run/secrets/x}``, and ``$$`` for a dollar sign.

References stand in values, never in keys, and what they become is text: it is not read as YAML, nor looked through
for further references. What came from a variable or a file is never shown: :meth:`Variables.scrub` takes it out of
a message.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from locus_tiered.config.mistakes import Mistakes, Path, did_you_mean

__all__ = ["Variables"]

_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_BYTES = 64 * 1024
_LONG_ENOUGH = 4  # a shorter secret would be found in every message
_LEFT_OUT = object()


class Variables:
    """The references of one stack.

    Args:
        env: What ``${NAME}`` is looked up in.
        base: What a relative path in ``${file:...}`` is relative to.
        mistakes: Who is told of references that lead nowhere.
    """

    def __init__(self, env: Mapping[str, str], base: FilePath, mistakes: Mistakes) -> None:
        self._env, self._base, self._mistakes = env, base, mistakes
        self.shown: dict[Path, str] = {}
        """By path, what stands for a value that must not be shown: ``${NAME}``."""
        self.empty: dict[Path, str] = {}
        """By path, references that became nothing: the option is as if it was not written."""
        self._secrets: dict[str, str] = {}

    def expand(self, data: Any, path: Path = ()) -> Any:
        """``data`` with every reference replaced."""
        value = self._expand(data, path)
        return None if value is _LEFT_OUT else value

    def _expand(self, data: Any, path: Path) -> Any:
        if isinstance(data, dict):
            found = {key: self._expand(value, (*path, key)) for key, value in data.items()}
            return {key: value for key, value in found.items() if value is not _LEFT_OUT}
        if isinstance(data, list):
            return [self.expand(value, (*path, place)) for place, value in enumerate(data)]
        return self._text(data, path) if isinstance(data, str) and "$" in data else data

    def _text(self, text: str, path: Path) -> Any:
        names: list[str] = []
        failed = False

        def replace(match: re.Match[str]) -> str:
            nonlocal failed
            if match[0] == "$$":
                return "$"
            found = self._look_up(match, path)
            if found is None:
                failed = True
                return ""
            name, value = found
            names.append(name)
            if len(value) >= _LONG_ENOUGH:
                self._secrets[value] = name
            return value

        result = _REFERENCE.sub(replace, text)
        if names:
            self.shown[path] = " and ".join(dict.fromkeys(names))
        if not result and not failed and names:
            self.empty[path] = self.shown[path]
            return _LEFT_OUT
        return None if failed else result

    def _look_up(self, match: re.Match[str], path: Path) -> tuple[str, str] | None:
        """How a reference is shown, and its value; or ``None``, once the mistake is noted."""
        body, closed = match[1], match[2]
        name, has_default, default = body.partition(":-")
        if not closed or "${" in body:
            what = "a reference inside another" if closed or "${" in body else "a reference without its }"
            self._mistakes.add(what, path, "write ${NAME} or ${NAME:-default}; $$ is a dollar sign")
        elif name.startswith("file:"):
            return self._read(name.removeprefix("file:"), default if has_default else None, path)
        elif not _NAME.fullmatch(name):
            self._mistakes.add(
                "a reference that names no variable",
                path,
                "write ${NAME}, ${NAME:-default} or ${file:/path}; $$ is a dollar sign",
            )
        elif value := self._env.get(name):
            return f"${{{name}}}", value
        elif has_default:
            return f"${{{name}}}", default
        elif name in self._env:
            return f"${{{name}}}", ""
        else:
            meant = None if self._mistakes.full else did_you_mean(name, self._env)
            close = f"{meant} Or " if meant and meant.startswith("did") else ""
            self._mistakes.add(f"the variable {name} is not set", path, f"{close}set it, or write ${{{name}:-default}}")
        return None

    def _read(self, name: str, default: str | None, path: Path) -> tuple[str, str] | None:
        shown = f"${{file:{name}}}"
        try:
            file = self._base / FilePath(name).expanduser()
            # A pipe or a device might never end.
            if not stat.S_ISREG(file.stat().st_mode):
                raise OSError("not a regular file")
            with file.open("rb") as opened:
                content = opened.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise OSError(f"more than {_MOST_BYTES // 1024} KiB")
            return shown, content.decode("utf-8").rstrip("\r\n")
        except FileNotFoundError:
            if default is not None:
                return shown, default
            problem = "no such file"
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL in it
            strerror = getattr(error, "strerror", None)
            problem = strerror or ("not text" if isinstance(error, ValueError) else str(error))
        self._mistakes.add(f"the file {name[:200]!r} cannot be read: {problem}", path)
        return None

    def show(self, value: object, path: Path) -> str:
        """A value for a message; one that came from a reference is shown as that."""
        if path in self.shown:
            return f"the value of {self.shown[path]}"
        text = repr(value)
        return self.scrub(text if len(text) <= 60 else f"{text[:59]}…")

    def scrub(self, text: str) -> str:
        """``text`` without anything that came from a reference."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            for form in (secret, repr(secret)[1:-1]):
                text = text.replace(form, self._secrets[secret])
        return text

    def shows(self, text: str) -> bool:
        """Whether ``text`` holds anything that came from a reference."""
        return self.scrub(text) != text
