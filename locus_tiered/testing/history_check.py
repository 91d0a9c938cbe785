"""Does a history keep the laws? ``python -m locus_tiered.testing.history_check a.jsonl b.jsonl``

The rules, each with the name that a :class:`Problem` has:

========================= =============================================================================================
``lost``                  an acknowledged save that nothing can have removed is answered with "there is none" (to
                          anybody), is missing in a list (of who saved it), or in a store in the end
``duplicated``            an id twice in one list, or one save found under another id or stamp than its own
``resurrected``           what an acknowledged delete had removed before the read began
``phantom``               what was never saved there: another state, another thread's, or saved only later
``read-your-writes``      older than what this process itself had saved
``monotonic reads``       older than what this process had been answered before
``newest``                older than what anybody was acknowledged, told to who reads strictly; or a store's own newest
                          is the wrong one in the end
``order``                 a list that is not in the order of the stamps
``unequal``               two stores hold different things in the end
========================= =============================================================================================

Where operations overlap in time, every order of them is allowed; an operation with an unknown outcome may have taken
effect at any time since, or not at all. A delete that is not acknowledged removes nothing for sure, and may remove
anything. Who does not read strictly must only know of his own deletes. An iteration save counts as removed as soon as
something newer is in its thread: it existed to survive a crash until then.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from locus_tiered.testing.history import NOTHING, Event, Seen, read_history

__all__ = ["Problem", "check_history", "main"]

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that an answer breaks."""

    rule: str
    event: Event
    """The answer."""
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}: {self.event}"


@dataclass(slots=True)
class _Thread:
    """The changes of one thread, and what each process has seen of it."""

    saves: list[Event] = field(default_factory=list)
    deletes: list[Event] = field(default_factory=list)
    reads: list[Event] = field(default_factory=list)
    by_id: dict[str, list[Event]] = field(default_factory=dict)
    by_value: dict[str, list[Event]] = field(default_factory=dict)
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    """By process and stamp: since when it knows."""


def check_history(events: Iterable[Event], *, loose: Collection[str] = ()) -> list[Problem]:
    """What is wrong with a history; empty when nothing is.

    ``loose``: threads of which only the end is judged, because several processes write to them at the same time over
    stores that lose such writes until they are compared (the SDK's key-value adapter keeps a list per thread that
    two processes overwrite for one another).
    """
    threads: dict[str, _Thread] = {}
    homes: dict[str, set[str]] = {}
    ends: list[Event] = []
    for event in sorted(events, key=lambda each: (each.begin, each.number)):
        thread = threads.setdefault(event.thread, _Thread())
        if event.kind == "holds":
            # What is only listed is not held: the key-value adapter of a process that died may do that.
            there = tuple(each for each in event.listed or () if each.value != NOTHING)
            ends.append(replace(event, listed=there))
        elif event.kind == "save":
            homes.setdefault(event.value or "", set()).add(event.thread)
            if event.outcome != "failed":
                thread.saves.append(event)
                thread.by_id.setdefault(event.id or "", []).append(event)
                thread.by_value.setdefault(event.value or "", []).append(event)
        elif event.kind == "delete":
            thread.deletes += [event] if event.outcome != "failed" else []
        elif event.outcome == "ok":
            thread.reads.append(event)
    problems: list[Problem] = []
    for name, thread in threads.items():
        if name not in loose:
            for read in sorted(thread.reads, key=lambda each: each.end or 0.0):
                problems += _Judge(thread, read, homes).read()
    stores: dict[str, list[Event]] = {}
    for end in ends:
        problems += _Judge(threads[end.thread], end, homes).end()
        stores.setdefault(end.process, []).append(end)
    problems += _missing_threads(threads, stores)
    problems += _unequal(stores)
    return problems


def _may_be_gone(thread: _Thread, save: Event, at: float) -> bool:
    """Whether a change begun before ``at`` may have removed it."""
    for delete in thread.deletes:
        until = delete.end if delete.outcome == "ok" and delete.end is not None else _NEVER
        if delete.id in (None, save.id) and delete.begin < at and until > save.begin:
            return True
    return save.iteration and any(
        (other.stamp or "") > (save.stamp or "") and other.begin < at for other in thread.saves
    )


def _missing_threads(threads: dict[str, _Thread], stores: dict[str, list[Event]]) -> Iterator[Problem]:
    for held in stores.values():
        looked = {event.thread for event in held}
        for name in threads.keys() - looked:
            for save in threads[name].saves:
                if save.outcome == "ok" and not _may_be_gone(threads[name], save, _NEVER):
                    yield Problem("lost", held[0], f"nobody looked for {save}")


def _unequal(stores: dict[str, list[Event]]) -> Iterator[Problem]:
    first: dict[str, Event] = {}
    for held in stores.values():
        for event in held:
            other = first.setdefault(event.thread, event)
            ours, theirs = set(event.listed or ()), set(other.listed or ())
            if ours != theirs:
                only = sorted(each.id for each in ours - theirs), sorted(each.id for each in theirs - ours)
                yield Problem("unequal", event, f"only here {only[0]}, only in {other.process} {only[1]}")


class _Judge:
    """One answer, and the thread that it is about."""

    def __init__(self, thread: _Thread, answer: Event, homes: dict[str, set[str]]) -> None:
        self.thread, self.answer, self.homes = thread, answer, homes
        self.ended = answer.end if answer.end is not None else _NEVER
        self.is_end = answer.kind == "holds"
        self.seen = thread.seen.setdefault(answer.process, {})

    def read(self) -> list[Problem]:
        """What is wrong with what a process was told."""
        answer = self.answer
        match answer.kind:
            case "load" | "head":
                found = list(self._newest() if answer.id is None else self._by_id())
            case "exists":
                found = list(self._exists())
            case _:
                found = list(self._listed(answer.listed or ()))
        return found

    def end(self) -> list[Problem]:
        """What is wrong with what a store holds when everything has been mended."""
        held = self.answer.listed or ()
        problems = list(self._listed(held))
        by_id = {each.id: each for each in held}
        for save in self._expected():
            there = by_id.get(save.id or "")
            if there is not None and (there.stamp or "") < (save.stamp or ""):
                problems.append(self._problem("lost", f"an older one took the place of {save}"))
        newest = max(held, key=lambda each: each.stamp or "", default=None)
        own = self.answer.found
        if (newest and (newest.id, newest.stamp)) != (own and (own.id, own.stamp)):
            problems.append(self._problem("newest", f"its own newest is {own}, not {newest}"))
        return problems

    def _problem(self, rule: str, what: str) -> Problem:
        return Problem(rule, self.answer, what)

    # -- what there may be ---------------------------------------------------------------------------

    def _versions(self, found: Seen) -> list[Event]:
        same = self.thread.by_id.get(found.id, ()) if found.id else self.thread.saves
        saves = [save for save in same if save.begin < self.ended]
        if found.value is not None:
            saves = [save for save in saves if save.value == found.value]
        if found.stamp is not None:
            saves = [save for save in saves if save.stamp in (None, found.stamp)]
        return saves

    def _is_real(self, found: Seen) -> Iterator[Problem]:
        """Whether that was saved there, and not deleted."""
        versions = self._versions(found)
        if not versions:
            yield self._unreal(found)
        elif all(self._is_gone(save) for save in versions):
            yield self._problem("resurrected", f"{found.id} was deleted; saved by {versions[-1]}")

    def _unreal(self, found: Seen) -> Problem:
        same = [save for save in self.thread.by_value.get(found.value or "", ()) if save.begin < self.ended]
        if same:
            return self._problem("duplicated", f"{found.id} ({found.stamp}) is what was saved once, by {same[0]}")
        elsewhere = self.homes.get(found.value or "", set()) - {self.answer.thread}
        whose = f"a state of thread {min(elsewhere)}" if elsewhere else "never saved there"
        return self._problem("phantom", f"{found.id} ({found.stamp}): {whose}")

    def _is_gone(self, save: Event) -> bool:
        """Whether it was deleted for sure, and whoever was answered had to know."""
        for delete in self.thread.deletes:
            acknowledged = delete.outcome == "ok" and delete.end is not None and delete.end < self.answer.begin
            before = save.end is not None and save.end < delete.begin
            if acknowledged and before and delete.id in (None, save.id) and self._must_know(delete, save):
                return True
        return False

    def _must_know(self, delete: Event, save: Event) -> bool:
        if self.is_end:
            return True
        if save.outcome != "ok":
            return False  # it may take effect whenever it likes, until the stores have been compared
        return delete.process == self.answer.process or (self.answer.strict and not save.iteration)

    def _expected(self) -> Iterator[Event]:
        """Acknowledged saves that must be there, whoever asks."""
        at = _NEVER if self.is_end else self.ended
        for save in self.thread.saves:
            done = save.outcome == "ok" and save.end is not None and (self.is_end or save.end < self.answer.begin)
            if done and not _may_be_gone(self.thread, save, at):
                yield save

    # -- answers -------------------------------------------------------------------------------------

    def _newest(self) -> Iterator[Problem]:
        found = self.answer.found
        if found is None:
            yield from (self._problem("lost", f"none, but there is {save}") for save in self._expected())
            return
        yield from self._is_real(found)
        yield from self._older(found.stamp or "", self._expected())
        self._saw(found)

    def _by_id(self) -> Iterator[Problem]:
        found, wanted = self.answer.found, self.answer.id
        expected = [save for save in self._expected() if save.id == wanted]
        if found is None:
            yield from (self._problem("lost", f"none, but there is {save}") for save in expected)
            return
        if found.id != wanted:
            yield self._problem("phantom", f"{found.id} for {wanted}")
            return
        yield from self._is_real(found)
        yield from self._older(found.stamp or "", expected)
        self._saw(found)

    def _older(self, stamp: str, expected: Iterable[Event]) -> Iterator[Problem]:
        newer = [save for save in expected if (save.stamp or "") > stamp]
        mine = [save for save in newer if save.process == self.answer.process]
        known = [save for save in newer if self.seen.get(save.stamp or "", _NEVER) < self.answer.begin]
        if mine:
            yield self._problem("read-your-writes", f"older than {mine[-1]}")
        elif known:
            yield self._problem("monotonic reads", f"it has seen {known[-1]}")
        elif newer and self.answer.strict:
            yield self._problem("newest", f"there is {newer[-1]}")

    def _saw(self, found: Seen) -> None:
        if found.stamp is not None:
            self.seen.setdefault(found.stamp, self.ended)

    def _exists(self) -> Iterator[Problem]:
        wanted = self.answer.id
        if self.answer.there:
            saves = self.thread.saves if wanted is None else self.thread.by_id.get(wanted, [])
            versions = [save for save in saves if save.begin < self.ended]
            if not versions:
                yield self._problem("phantom", "never saved")
            elif all(self._is_gone(save) for save in versions):
                yield self._problem("resurrected", f"deleted; saved by {versions[-1]}")
            return
        for save in self._expected():
            if wanted in (None, save.id):
                yield self._problem("lost", f"said not to be there, but there is {save}")

    def _listed(self, listed: Sequence[Seen]) -> Iterator[Problem]:
        answer = self.answer
        for name, times in Counter(each.id for each in listed).items():
            if times > 1:
                yield self._problem("duplicated", f"{name} is there {times} times")
        for found in listed:
            yield from self._is_real(found)
        stamps = [each.stamp for each in listed if each.stamp is not None]
        if stamps != sorted(stamps, reverse=True):
            yield self._problem("order", "not newest first")
        full = answer.limit is not None and len(listed) >= answer.limit
        least = min(stamps, default="") if full else ""
        names = {each.id for each in listed}
        for save in self._expected():
            if save.id in names or (save.stamp or "") < least or answer.limit == 0:
                continue
            if self.is_end or answer.strict or not listed or save.process == answer.process:
                yield self._problem("lost", f"not listed: {save}")
            elif self.seen.get(save.stamp or "", _NEVER) < answer.begin:
                yield self._problem("monotonic reads", f"not listed, though it has seen {save}")
        if not self.is_end:
            for found in listed:
                self._saw(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check files; prints what is wrong. The exit code is 1 when something is."""
    parser = argparse.ArgumentParser(prog="history_check", description="Does a history keep the laws?")
    parser.add_argument("files", nargs="+", help="JSON lines of RecordingCheckpointer and of holdings()")
    parser.add_argument("--loose", action="append", default=[], help="a thread of which only the end is judged")
    options = parser.parse_args(arguments)
    events = read_history(*options.files)
    problems = check_history(events, loose=options.loose)
    for problem in problems:
        print(problem)
    outcomes = Counter(event.outcome for event in events if event.kind != "holds")
    counted = ", ".join(f"{outcomes[name]} {name}" for name in ("ok", "failed", "unknown"))
    print(f"{sum(outcomes.values())} operations ({counted}), {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
