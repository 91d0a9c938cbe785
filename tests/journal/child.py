"""A process with a journal of its own, for tests: it says on standard output how far it is, and obeys a line each.

``python -m tests.journal.child <journal> <first number> <count>``; then ``end`` closes it, ``exit`` leaves at once.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.journal.parts import append, indexed, journal_in


async def main(path: Path, first: int, count: int) -> None:
    async with journal_in(path) as journal:
        print("adopted", *indexed(journal), flush=True)
        for number in range(first, first + count):
            await append(journal, number, 9_000)
            print("kept", number, flush=True)
        print("ready", flush=True)
        while True:
            line = await asyncio.to_thread(sys.stdin.readline)
            if line.strip() == "end" or not line:
                return


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
