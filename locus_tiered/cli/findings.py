"""What is wrong in one thread of a stack: damage, gaps, stale copies, a backend whose own latest is not the newest."""

from __future__ import annotations

from dataclasses import dataclass, field

from locus_tiered.cli.answers import Found
from locus_tiered.cli.opening import Place, store_of
from locus_tiered.cli.reading import Reader, ask, entries_of, in_order, load_from
from locus_tiered.cli.states import digest, state_of
from locus_tiered.cli.text import one_line
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import BackendError, CorruptCheckpoint
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import Load

__all__ = ["Examination", "examine_twice"]


@dataclass
class Examination:
    """One thread, examined.

    ``entries`` is the truth, newest first; ``good`` says, by id, in which places an undamaged copy of exactly the
    truth's version lies.
    """

    thread: str
    entries: list[Entry]
    found: list[Found] = field(default_factory=list)
    good: dict[str, list[Place]] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    without_digest: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, place: Place, checkpoint: str | None, what: str) -> None:
        """Note one finding."""
        self.found.append(
            Found.model_validate(
                {"kind": kind, "place": place.name, "thread": self.thread, "checkpoint": checkpoint, "what": what}
            )
        )


async def examine_twice(reader: Reader, thread: str, *, bodies: bool) -> Examination:
    """:func:`examine`, and once more where something was found: on a live store, a save or a delete was on its way."""
    first = await examine(reader, thread, bodies=bodies)
    if all(found.kind == "damaged" for found in first.found):
        return first
    seen = {(found.kind, found.place, found.checkpoint) for found in first.found}
    second = await examine(reader, thread, bodies=bodies)
    second.found = [found for found in second.found if (found.kind, found.place, found.checkpoint) in seen]
    return second


async def examine(reader: Reader, thread: str, *, bodies: bool) -> Examination:
    """Look at one thread everywhere. ``bodies=False`` compares only what is listed, and the latest."""
    places = [place for place in reader.places if not place.private or place.role != "near"]
    listed: dict[str, list[Entry]] = {}
    for place in reader.up(places):
        try:
            listed[place.name] = await entries_of(place, thread, reader.timeout)
        except BackendError as error:
            reader.failed(place, error)
    truth = [place for place in reader.up(reader.truth) if place.name in listed]
    if not truth:
        await reader.entries(thread)  # raises what is to be said
    entries = listed[truth[0].name] if len(truth) == 1 else in_order(e for place in truth for e in listed[place.name])
    result = Examination(thread, entries)
    if bodies:
        entries = result.entries = in_order([*entries, *await _put_aside(reader, result, truth, listed)])
    wanted = {entry.id: entry for entry in entries}
    for place in reader.up(places):
        if place.name in listed:
            await _one_place(reader, result, place, listed[place.name], wanted, bodies)
    return result


async def _put_aside(
    reader: Reader, result: Examination, truth: list[Place], listed: dict[str, list[Entry]]
) -> list[Entry]:
    """What home found damaged before and lists no more, and a near tier still has."""
    known = {entry.id for entry in result.entries}
    near = {entry.id: entry for entries in listed.values() for entry in entries if entry.id not in known}
    lost = []
    for entry in near.values():
        for place in truth:
            try:
                await ask(place, Load(result.thread, entry.id), reader.timeout)
            except CorruptCheckpoint as error:
                result.add("damaged", place, entry.id, one_line(str(error), 200))
                lost.append(entry)
            except BackendError as error:
                reader.failed(place, error)
    return lost


async def _one_place(
    reader: Reader, result: Examination, place: Place, listed: list[Entry], wanted: dict[str, Entry], bodies: bool
) -> None:
    there = {entry.id: entry for entry in listed}
    if place.role == "replica":
        for entry in result.entries:
            if entry.id not in there:
                result.add("missing", place, entry.id, "another replica has it")
    for entry in listed:
        truth = wanted.get(entry.id)
        if truth is None:
            result.add("leftover", place, entry.id, "whoever holds the truth does not have it")
        elif truth.stamp != entry.stamp and truth.stamp is not None:
            result.add("stale", place, entry.id, "an older version than the newest saved under this id")
        elif not bodies:
            result.good.setdefault(entry.id, []).append(place)
        if bodies:
            loaded = await _body(reader, result, place, entry)
            if loaded is not None and truth is not None and loaded.stamp is not None and loaded.stamp == truth.stamp:
                result.good.setdefault(entry.id, []).append(place)
    if place.role != "near" and result.entries and there.get(result.entries[0].id) is not None:
        await _own_latest(reader, result, place)


async def _body(reader: Reader, result: Examination, place: Place, entry: Entry) -> Checkpoint | None:
    result.checked[place.name] = result.checked.get(place.name, 0) + 1
    try:
        found = await ask(place, Load(result.thread, entry.id), reader.timeout)
    except CorruptCheckpoint as error:
        result.add("damaged", place, entry.id, one_line(str(error), 200))
        return None
    except BackendError as error:
        if error.temporary is False:
            result.add("unreadable", place, entry.id, one_line(str(error), 200))
        else:
            reader.failed(place, error)
        return None
    if found is None:
        result.add("unreadable", place, entry.id, "it is listed, and cannot be loaded")
    elif found.stamp is None:
        result.without_digest[place.name] = result.without_digest.get(place.name, 0) + 1
    return found


async def _own_latest(reader: Reader, result: Examination, place: Place) -> None:
    """What readers without the stack are given as the newest."""
    head = result.entries[0]
    bottom = store_of(place.layer)
    if not isinstance(bottom, Leaf) or head.stamp is None:
        return
    try:
        latest = await ask(place, Load(result.thread, None), reader.timeout)
        if latest is not None and latest.stamp == head.stamp:
            return
        if latest is not None and latest.stamp is None:
            newest = await load_from(place, result.thread, head, reader.timeout)
            if newest is not None and digest(await state_of(newest)) == digest(await state_of(latest)):
                return
    except CorruptCheckpoint:
        return  # found by its id as well
    except BackendError as error:
        reader.failed(place, error)
        return
    what = "nothing" if latest is None else f"checkpoint {latest.id or 'of another save'}"
    result.add("latest", place, head.id, f"readers without the stack are given {what} instead of this one")
