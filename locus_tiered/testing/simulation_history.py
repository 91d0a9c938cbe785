"""What the processes of a simulation were promised, and whether an answer keeps it.

Every saved state carries a number of its own (its *mark*, in ``total_tokens_used``), so whatever is found is told
apart from whatever else was ever saved. A :class:`History` holds every save and every delete with the moments at which
they began and ended, and judges the answers to reads:

* a checkpoint that was never saved there is never answered, nor with another body;
* what was deleted, or replaced under its id, before a read began is not answered to the process that did it, nor to
  anybody who reads by quorum; others may be told of it until the replicas have been compared;
* an acknowledged save is never answered with "there is none", whoever asks;
* a process never goes back behind what it has saved or seen (in a list: saved); by quorum, nobody goes back behind
  anything acknowledged.

Where two processes write one checkpoint at the same time, nobody can promise more than that the replicas agree in the
end, which :meth:`History.must` and :meth:`History.must_not` tell. What "at the same time" is, is known here from the
calls that reached the replicas (:meth:`History.wrote`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered.core.checkpoint import ITERATION_KEY

__all__ = ["History", "Reader", "Removal", "Version", "state_of"]

_LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
_NEVER = float("inf")


def state_of(mark: int, iterations: Sequence[str] = ()) -> AgentState:
    """The one state that carries ``mark``, as an agent would save it."""
    metadata = {ITERATION_KEY: list(iterations)} if iterations else {}
    return AgentState(
        run_id=f"run-{mark}",
        messages=(Message.user(f"this is {mark}"),),
        metadata=metadata,
        total_tokens_used=mark,
        started_at=_LONG_AGO,
        updated_at=_LONG_AGO,
    )


@dataclass(slots=True, eq=False)
class Reader:
    """One life of one process: what it has seen, and by which policy it reads."""

    name: str
    life: int
    policy: str
    seen: set[int] = field(default_factory=set)
    """Marks that it has saved, or was told of as a thread's newest or by id."""
    listed: dict[int, float] = field(default_factory=dict)
    """Since when it knows by a list of which save."""

    @property
    def strict(self) -> bool:
        return self.policy == "quorum"


@dataclass(slots=True, eq=False)
class Version:
    """One save."""

    mark: int
    thread: str
    id: str
    stamp: str
    by: Reader
    iterations: tuple[str, ...]
    begun: float
    looked: tuple[float, float]
    """When its client had last looked at the thread, and at the name: what others deleted since, by clocks that are
    ahead, may bury it (where clocks jump; else the same as ``begun``)."""
    ended: float = _NEVER
    """When it was acknowledged; never, if it failed or its process died: then it may take effect at any time."""
    done: bool = False

    @property
    def iteration(self) -> bool:
        return self.id in self.iterations


@dataclass(slots=True, eq=False)
class Removal:
    """One delete of a checkpoint, or (``id=None``) of a thread."""

    thread: str
    id: str | None
    by: Reader
    begun: float
    ended: float = _NEVER
    done: bool = False


class History:
    """The saves and deletes of all processes. Moments are the numbers that :meth:`now` counts up.

    ``skewed``: clocks of processes differ by hours. ``careless``: some replica acknowledges what it does only later.
    ``single``: one replica of several is enough to acknowledge a save.
    """

    def __init__(self, *, skewed: bool = False, careless: bool = False, single: bool = False) -> None:
        self.skewed, self.careless, self.single = skewed, careless, single
        self.versions: dict[int, Version] = {}
        self.removals: list[Removal] = []
        self._threads: dict[str, list[Version]] = {}
        self._removed: dict[str, list[Removal]] = {}
        self._writes: dict[tuple[str, str], dict[tuple[int, tuple[str, int]], float]] = {}
        self._now = 0
        self.taken: set[int] = set()
        """Marks of saves that a delete older than themselves has taken from some replica."""

    def now(self) -> int:
        """The next moment."""
        self._now += 1
        return self._now

    # -- what happens --------------------------------------------------------------------------------

    def begin_save(
        self,
        thread: str,
        name: str,
        stamp: str,
        by: Reader,
        mark: int,
        turn: Sequence[str],
        looked: tuple[float, float] | None,
    ) -> Version:
        """A save begins; ``looked``: see :class:`Version`."""
        begun = self.now()
        version = Version(mark, thread, name, stamp, by, tuple(turn), begun, looked or (begun, begun))
        self.versions[mark] = version
        self._threads.setdefault(thread, []).append(version)
        return version

    def begin_delete(self, thread: str, name: str | None, by: Reader) -> Removal:
        removal = Removal(thread, name, by, self.now())
        self.removals.append(removal)
        self._removed.setdefault(thread, []).append(removal)
        return removal

    def done(self, change: Version | Removal) -> None:
        """The change was acknowledged."""
        change.ended, change.done = self.now(), True
        if isinstance(change, Version):
            change.by.seen.add(change.mark)

    def wrote(self, thread: str, name: str, mark: int, by: tuple[str, int]) -> None:
        """This save has just reached some replica, sent by this life of a process (or nobody's: a late effect)."""
        self._writes.setdefault((thread, name), {})[mark, by] = self.now()

    def took(self, mark: int) -> None:
        """A delete has just taken this save from some replica.

        Where that delete had been acknowledged before the save began, the save came into that replica while an old hint
        was on its way there. It is missed there, until the replicas have been compared.
        """
        version = self.versions.get(mark)
        if version is not None and not self.may_be_gone(version, self._now + 1):
            self.taken.add(mark)

    # -- what may be ---------------------------------------------------------------------------------

    def may_be_gone(self, version: Version, at: float) -> bool:
        """Whether some change begun before ``at`` may have removed or replaced it."""
        for removal in self._removed.get(version.thread, ()):
            if removal.id not in (None, version.id) or removal.begun >= at:
                continue
            if removal.by is version.by and removal.begun < version.begun and not self.skewed:
                continue  # it waits behind that delete, acknowledged or not
            # Who reads by one replica may not have heard of a delete, and saves below it if clocks differ by hours.
            # So does who is told of what was saved while it was deleted, and does not look for what is gone.
            unheard = self.skewed and removal.by is not version.by
            unheard = unheard and (not version.by.strict or self._was_crossed(removal))
            if removal.ended > version.looked[removal.id is not None] or unheard:
                return True
        return any(
            other.begun < at and other.stamp > version.stamp and (other.id == version.id or version.iteration)
            for other in self._threads[version.thread]
        )

    def _was_crossed(self, removal: Removal) -> bool:
        """Whether somebody saved to the thread while it was deleted from."""
        saves = self._threads[removal.thread]
        return any(save.begun < removal.ended and save.ended > removal.begun for save in saves)

    def is_gone(self, version: Version, at: float, to: Reader | None) -> bool:
        """Whether nobody like ``to`` may be told of it any more from ``at`` on; ``None``: whoever asks in the end."""
        for removal in self._removed.get(version.thread, ()):
            if removal.id not in (None, version.id) or not removal.done or removal.ended >= at:
                continue
            mine = removal.by is version.by and version.begun < removal.begun
            if not (mine or version.ended < removal.begun):
                continue
            if to is None or self._binds(removal.by, removal.begun, version, to):
                return True
        for other in self._threads[version.thread]:
            replaced = other.id == version.id and other.done and other.ended < at and other.stamp > version.stamp
            replaced = replaced and not self._was_deleted(other, version.begun) and not self._may_be_taken(other)
            if replaced and (to is None or self._binds(other.by, other.begun, version, to)):
                return True
        return False

    def _was_deleted(self, version: Version, before: float) -> bool:
        """Whether it was deleted, and that acknowledged, by then: what is saved later comes in place of nothing."""
        removals = [each for each in self._removed.get(version.thread, ()) if each.id in (None, version.id)]
        return any(each.done and version.ended < each.begun and each.ended < before for each in removals)

    def _binds(self, by: Reader, begun: float, version: Version, to: Reader) -> bool:
        """Whether ``to`` must know of a change that ``by`` made to a version."""
        if to is not by and (not to.strict or version.iteration or self.careless):
            return False
        writes = self._writes.get((version.thread, version.id), {})
        # Another process's write of that very version was under way: it may have come after the change.
        return not any(
            mark == version.mark and life != (by.name, by.life) and last >= begun
            for (mark, life), last in writes.items()
        )

    def _disturbed(self, version: Version) -> bool:
        """Whether another process's write of an older version of the same id may have come after it."""
        writes = self._writes.get((version.thread, version.id), {})
        return any(
            mark != version.mark
            and life != (version.by.name, version.by.life)
            and last >= version.begun
            and mark in self.versions
            and self.versions[mark].stamp < version.stamp
            for (mark, life), last in writes.items()
        )

    def _may_be_taken(self, version: Version) -> bool:
        """Whether its only copy may have been taken by an older write of another process that its replica carried out
        late.
        """
        return self.single and (version.mark in self.taken or self._disturbed(version))

    def expected(
        self, thread: str, to: Reader, at: float, *, everybodys: bool, weak: Collection[int] = ()
    ) -> Iterable[Version]:
        """Acknowledged saves that ``to``, who began to read at ``at``, must not miss.

        ``weak``: marks that too few replicas held then, because a careless one had acknowledged them.
        """
        for version in self._threads.get(thread, ()):
            if not version.done or version.ended >= at or version.mark in weak or self._disturbed(version):
                continue
            if everybodys or to.strict or version.mark in to.seen or to.listed.get(version.mark, at) < at:
                yield version

    def of(self, thread: str) -> Sequence[Version]:
        """Every save to a thread."""
        return self._threads.get(thread, ())

    # -- judging answers -----------------------------------------------------------------------------

    def loaded(
        self,
        to: Reader,
        thread: str,
        name: str | None,
        began: float,
        found: AgentState | None,
        weak: Collection[int] = (),
    ) -> list[str]:
        """What is wrong with an answer to ``load(thread, name)``; ``name=None`` asks for the newest."""
        now, problems = self.now(), []
        asked = f"the newest of {thread}" if name is None else f"{thread}/{name}"
        stamp = ""
        if found is not None:
            problems += self._body(found, thread, name)
            version = self.versions.get(found.total_tokens_used)
            if problems or version is None:
                return problems
            if self.is_gone(version, began, to):
                problems.append(f"RESURRECTED {self._who(version)} as {asked}, told to {_life(to)}")
            stamp = version.stamp
        for other in self.expected(thread, to, began, everybodys=found is None, weak=weak):
            if name in (None, other.id) and other.stamp > stamp and not self.may_be_gone(other, now):
                told = "none" if found is None else f"mark {found.total_tokens_used}"
                what = "LOST" if found is None else "STALE"
                problems.append(f"{what} {self._who(other)}: {asked} is {told}, told to {_life(to)}")
        if found is not None:
            to.seen.add(found.total_tokens_used)
        return problems

    def exists(
        self, to: Reader, thread: str, name: str, began: float, answer: bool, weak: Collection[int] = ()
    ) -> list[str]:
        """What is wrong with an answer to ``exists(thread, name)``."""
        now = self.now()
        versions = [each for each in self._threads.get(thread, ()) if each.id == name]
        if answer:
            if all(self.is_gone(each, began, to) for each in versions):
                return [f"RESURRECTED {thread}/{name}: exists() says so to {_life(to)}"]
            return []
        expected = self.expected(thread, to, began, everybodys=True, weak=weak)
        lost = [each for each in expected if each.id == name and not self.may_be_gone(each, now)]
        return [f"LOST {self._who(each)}: exists() says no to {_life(to)}" for each in lost]

    def listed(
        self, to: Reader, thread: str, began: float, names: Sequence[str], weak: Collection[int] = ()
    ) -> list[str]:
        """What is wrong with an answer to ``list_checkpoints(thread)``."""
        now, problems = self.now(), []
        versions: dict[str, list[Version]] = {}
        for version in self._threads.get(thread, ()):
            versions.setdefault(version.id, []).append(version)
        if len(set(names)) != len(names):
            problems.append(f"TWICE {thread}: {names}")
        for name in names:
            if name not in versions:
                problems.append(f"PHANTOM {thread}/{name}: listed, never saved")
            elif all(self.is_gone(each, began, to) for each in versions[name]):
                problems.append(f"RESURRECTED {thread}/{name}: listed to {_life(to)}")
        problems += [
            f"LOST {self._who(version)}: not listed to {_life(to)}"
            for version in self.expected(thread, to, began, everybodys=True, weak=weak)
            if version.id not in names and not self.may_be_gone(version, now)
            if not names or to.strict or version.by is to or to.listed.get(version.mark, began) < began
        ]
        for name in names:
            if len(versions.get(name, ())) == 1:  # then it is that save
                to.listed.setdefault(versions[name][0].mark, now)
        stamps = [versions[name][0].stamp for name in names if len(versions.get(name, ())) == 1]
        if stamps != sorted(stamps, reverse=True):
            problems.append(f"ORDER {thread}: {names} are listed, though their stamps are {stamps}")
        return problems

    def threads(self, to: Reader, began: float, names: Sequence[str], weak: Collection[int] = ()) -> list[str]:
        """What is wrong with an answer to ``list_threads()``."""
        now = self.now()
        return [
            f"LOST thread {thread}: not listed to {_life(to)}"
            for thread in self._threads
            if thread not in names
            and any(
                each.by is to and not self.may_be_gone(each, now)
                for each in self.expected(thread, to, began, everybodys=False, weak=weak)
            )
        ]

    # -- in the end ----------------------------------------------------------------------------------

    def must(self, thread: str) -> list[Version]:
        """What must be there once everything has been mended."""
        done = [each for each in self._threads.get(thread, ()) if each.done and not self._may_be_taken(each)]
        return [each for each in done if not self.may_be_gone(each, _NEVER)]

    def must_not(self, thread: str, found: dict[str, int]) -> list[str]:
        """What is wrong with a thread that holds these ids with these marks, once everything has been mended."""
        problems = []
        for name, mark in found.items():
            version = self.versions.get(mark)
            if version is None or (version.thread, version.id) != (thread, name):
                problems.append(f"PHANTOM {thread}/{name} mark {mark}: never saved there")
            elif self.is_gone(version, _NEVER, None):
                problems.append(f"RESURRECTED {self._who(version)} in the end")
        for version in self.must(thread):
            if version.id not in found:
                problems.append(f"LOST {self._who(version)} in the end")
            elif self.versions[found[version.id]].stamp < version.stamp:
                problems.append(f"REPLACED {self._who(version)} by an older one in the end")
        return problems

    def names(self) -> list[str]:
        """Every thread that was ever saved to."""
        return list(self._threads)

    # -- words ---------------------------------------------------------------------------------------

    def _body(self, found: AgentState, thread: str, name: str | None) -> list[str]:
        mark = found.total_tokens_used
        version = self.versions.get(mark)
        if version is None or version.thread != thread or name not in (None, version.id):
            return [f"PHANTOM {thread}/{name or 'newest'}: mark {mark} was never saved there"]
        if found != state_of(mark, version.iterations):
            return [f"BODY {self._who(version)}: not the state that was saved"]
        return []

    @staticmethod
    def _who(version: Version) -> str:
        return f"{version.thread}/{version.id} mark {version.mark} of {_life(version.by)}"


def _life(reader: Reader) -> str:
    return f"{reader.name}.{reader.life}"
