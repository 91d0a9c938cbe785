"""An error of a backend is told by its class and the server's code, never by its message, which may hold a secret."""

from __future__ import annotations

from typing import Any

import pytest
from asyncpg import UndefinedTableError
from botocore.exceptions import ClientError
from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered import RetryingCheckpointer
from locus_tiered.core.errors import BackendError, cause_of, told_cause

DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "key AKIA-SECRET may not"}}, "PutObject")


class Refusing(MemoryCheckpointer):
    async def save(self, *args: Any, **kwargs: Any) -> str:
        raise DENIED


async def test_a_message_holds_the_servers_code() -> None:
    with pytest.raises(BackendError) as raised:
        await RetryingCheckpointer(Refusing()).save(AgentState(), "t")
    assert "(ClientError, AccessDenied)" in str(raised.value)
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DENIED, "ClientError, AccessDenied"),
        (UndefinedTableError("no table"), "UndefinedTableError, 42P01"),
        (ClientError({"Error": {"Code": "a secret, perhaps"}}, "PutObject"), "ClientError"),
        (ClientError({"Error": {"Code": 7}}, "PutObject"), "ClientError"),
        (OSError("password=x"), "OSError"),
    ],
)
def test_what_is_told_of_a_cause(error: Exception, told: str) -> None:
    assert told_cause(error) == cause_of(error) == told
