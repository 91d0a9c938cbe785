"""What a turn waits when every answer of S3 comes 20 ms later: with write-behind, for one save at the most.

The server is a real one behind a proxy that holds its answers back. Each contender takes one turn with answers in
time and one with late ones, in every round.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.rows.turns import ALONE, STACKS, contenders
from locus_tiered.bench.states import conversation
from locus_tiered.bench.timing import interleave, turns
from locus_tiered.testing.proxy import FaultProxy
from locus_tiered.testing.services import SeaweedFS, seaweedfs

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["client_through", "measure"]

_LATE = 0.020
_STACKS = tuple(stack for stack in STACKS if stack.latest == "exclusive")


def client_through(server: SeaweedFS, proxy: FaultProxy) -> Any:
    """A boto3 client whose requests to the server go through the proxy; one attempt each."""
    # Here, because the other rows, and the command line that imports all of them, do without the extra s3.
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{proxy.port}",
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )


async def measure(settings: Settings) -> list[Figure]:
    """What late answers add to a turn's waiting, against what they make of one save."""
    with seaweedfs() as server, FaultProxy(server.port) as proxy:

        def reach() -> tuple[S3Backend, Any]:
            client = client_through(server, proxy)
            return server.backend(_client=client), client

        in_time: dict[str, list[float]] = {}
        late: dict[str, list[float]] = {}
        async with contenders(settings.directory, reach, _STACKS) as found:
            for contender in found.values():
                await contender.take_turn()
            for name in turns(list(found), settings.pick(9, 1)):
                proxy.pass_through()
                in_time.setdefault(name, []).append(await found[name].take_turn())
                proxy.slow(_LATE)
                late.setdefault(name, []).append(await found[name].take_turn())
            one_save = await _one_save(settings, reach)
    save = one_save * 1e3
    figures = [Figure(what=f"one save by {ALONE}, late", unit="ms", stack=save)]
    # One save, or nothing: less than a single late answer.
    for name, most in ((ALONE, None), ("turn, excl.", save), ("journal, excl.", _LATE * 1e3)):
        pairs = list(zip(late[name], in_time[name], strict=True))
        figures.append(
            Figure(
                what=f"{name}, late : in time",
                unit="ms",
                against="answers in time",
                sdk=median(in_time[name]) * 1e3,
                stack=median(late[name]) * 1e3,
                ratio=median(one / other for one, other in pairs),
                difference=median(one - other for one, other in pairs) * 1e3,
                budget=None if most is None else Budget("difference", round(most, 1)),
                details={"late": _LATE * 1e3, "turns": len(pairs)},
            )
        )
    return figures


async def _one_save(settings: Settings, reach: Any) -> float:
    """Seconds of one save by ``S3Backend``, at present."""
    s3, client = reach()
    await s3.save(AgentState(), "before everything")
    state = conversation(24)
    rounds = await interleave({"save": lambda: s3.save(state, "thread")}, rounds=settings.pick(9, 3), calls=2)
    client.close()
    return rounds.median("save")
