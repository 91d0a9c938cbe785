"""YAML text becomes values with places; what is dangerous or doubtful in it becomes a mistake, in bounded time."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml

from locus_tiered.config.mistakes import Mistakes, Place
from locus_tiered.config.text import MOST_TEXT, Unreadable, read_mapping, read_text


def read(text: str) -> tuple[Any, list[str]]:
    mistakes = Mistakes()
    value = read_text(text, mistakes)
    return value, [str(each) for each in mistakes.found]


@pytest.mark.parametrize(
    "text",
    [
        'a: 1\nb: [x, 2.5, true, null, ~, -3, +4, 0x1f, .inf]\nc: {d: \'e\', "f": "\\u00e9"}\n',
        "a: |\n  two\n  lines\nb: >-\n  one\n  line\n",
        "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n",
        "- a\n- b: c\n  d: [e, {f: g}]\n",
        '{"json": [1, 2.0, false, null]}',
        "",
        "a:\n",
    ],
)
def test_what_both_understand_is_read_as_safe_load_reads_it(text: str) -> None:
    assert read(text) == (yaml.safe_load(text), [])


def test_words_are_those_of_yaml_1_2() -> None:
    value, mistakes = read("a: off\nb: no\nc: 12:30\nd: 2001-01-01\ne: 1_000\nf: 0o17\ng: 017\n")
    assert value == {"a": "off", "b": "no", "c": "12:30", "d": "2001-01-01", "e": "1_000", "f": 15, "g": 17}
    assert mistakes == []


def test_every_value_and_key_has_its_place() -> None:
    mistakes = Mistakes()
    read_text("name: x\ntiers:\n  - s3:\n      bucket: agents\n  - {file: {base_dir: x}}\n", mistakes)
    assert mistakes.keys["tiers", 0, "s3", "bucket"] == Place(4, 7)
    assert mistakes.values["tiers", 0, "s3", "bucket"] == Place(4, 15)
    assert mistakes.keys["tiers", 1, "file", "base_dir"] == Place(5, 13)


def test_a_key_that_is_written_twice_is_a_mistake() -> None:
    _, mistakes = read("tiers:\n  - memory: {max_bytes: 1, max_bytes: 2}\n")
    assert mistakes == [
        "2:28, tiers[0].memory.max_bytes: the key 'max_bytes' is written twice "
        "(it is on line 2 too; one of them must go)"
    ]


def test_merge_keys_what_is_written_wins_then_the_first() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {a: 0, <<: [*x, *y]}\nw: {<<: {<<: *y, d: 4}, c: 3}\n"
    value, mistakes = read(text)
    assert (value["z"], value["w"], mistakes) == ({"a": 0, "b": 1, "c": 2}, {"b": 2, "c": 3, "d": 4}, [])
    assert read('"<<": 1\n') == ({"<<": 1}, [])
    assert read("a: {<<: 1}\n")[1] == ["1:9, a: << takes a mapping, or a list of them"]
    assert "twice" in read("a: {<<: {}, <<: {}}\n")[1][0]


def test_keys_at_the_top_that_begin_with_x_are_a_place_for_anchors() -> None:
    assert read("x-retry: &r {attempts: 2}\na: {x-b: *r}\n") == ({"a": {"x-b": {"attempts": 2}}}, [])


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [ls]",
        "a: !!python/name:os.system",
        "a: !mine {b: 1}",
        "a: !!binary aGk=",
        "a: !!set {b}",
        "a: !!timestamp 2001-01-01",
        "%TAG ! tag:mine,2001:\n---\na: !foo b",
    ],
)
def test_tags_are_mistakes(text: str) -> None:
    _, mistakes = read(text)
    assert len(mistakes) == 1
    assert "a tag (!) is not allowed here" in mistakes[0]


def test_a_tag_that_says_text_is_allowed() -> None:
    assert read("a: !!str 5\n") == ({"a": "5"}, [])


def _laughs() -> str:
    lines = ["x0: &x0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


def _merging_laughs() -> str:
    lines = ["x0: &x0 {a: 1}"]
    lines += [f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        _laughs(),
        _merging_laughs(),
        "&a [*a]",
        "&a {b: *a}",
        "a: &a {<<: *a}",
        "[" * (MOST_TEXT - 1),
        "{" * (MOST_TEXT - 1),
        "- " * (MOST_TEXT // 2),
        "? " * (MOST_TEXT // 2),
        "a:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 600)),
        "[" + "1," * 100_000 + "]",
        "a" * (MOST_TEXT + 1),
        "\n".join(f"k{n}: 1" for n in range(20_000)),
    ],
    ids=lambda text: f"{text[:12]!r}x{len(text)}",
)
def test_too_much_is_refused_soon(text: str) -> None:
    with pytest.raises(Unreadable, match="more than"):
        read_text(text, Mistakes())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["'" * 100_001, '"' + "a\n" * 100_000, "#" * 200_000, "a\n" * 100_000, "&" * 100_000])
def test_long_nonsense_ends_soon(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert read_text(text, Mistakes()) is None or "a" in text


@pytest.mark.parametrize(
    ("text", "message", "place", "hint"),
    [
        ("a: *hunter2", "an alias (*) without its anchor (&)", (1, 4), "put text that begins with * in quotes"),
        ("a: {url: ${URL}}", "this is not YAML", (1, 11), 'put "${...}" in quotes'),
        ("a: 1\n---\nb: 2", "a second document begins here", (2, 1), "one file is one stack: leave out the ---"),
        ("a: b: c", "this is not YAML: mapping values are not allowed here", (1, 5), 'a value with ": " in it needs'),
        ("a: 'b", "this is not YAML", (1, 6), None),
        ("a: 1\n\tb: 2", "this is not YAML: a tab", (2, 1), "indent with spaces"),
        ("a: [b", "this is not YAML: expected ',' or ']', but got the end of the text", (1, 6), None),
        ("a: \x07", "a character that YAML does not allow", (1, 4), "write it as an escape in double quotes"),
        ('a: "\\UFFFFFFFF"', "this is not YAML: an escape or a directive that means nothing", None, None),
    ],
)
def test_what_is_not_yaml_says_where_and_quotes_nothing(
    text: str, message: str, place: tuple[int, int] | None, hint: str | None
) -> None:
    with pytest.raises(Unreadable) as raised:
        read_text(text, Mistakes())
    error = raised.value
    assert error.message.startswith(message)
    assert error.place == (place and Place(*place))
    assert (error.hint or "").startswith(hint or "")
    assert "hunter2" not in f"{error.message} {error.hint}"
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_mapping_of_a_program_is_copied_and_bounded() -> None:
    mistakes = Mistakes()
    given: dict[Any, Any] = {"a": [1, (2.0, None)], "x-ignored": object(), 5: "b", "c": {"d": object()}}
    assert read_mapping(given, mistakes) == {"a": [1, [2.0, None]], "c": {"d": None}}
    assert [str(each) for each in mistakes.found] == [
        "a key must be a string, not a int",
        "c.d: a stack file can hold no object",
    ]
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(Unreadable, match="levels"):
        read_mapping(endless, Mistakes())
