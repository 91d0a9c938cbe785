"""What a stack costs and saves, measured against the SDK's own checkpointers on the machine at hand.

::

    python -m locus_tiered.bench --json bench.json      # all rows, about eight minutes
    python -m locus_tiered.bench --quick --only warm    # a first look at some

Every figure stands beside one of the SDK alone (or of a bare floor) that was taken in the same run: the two
take turns in small rounds, and what is judged is the median over the rounds, so that a busy machine disturbs
both alike. The absolute times say little about another machine; the ratios do.

It measures; it asserts nothing: a missed budget is shown, and only ``--strict`` makes it the exit code. To add a
row, write a module in ``rows`` with one ``async def measure(settings)`` that answers :class:`Figure` values, and
name it in ``suite.ROWS``.
"""

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.suite import ROWS, Row, Settings, measure

__all__ = ["ROWS", "Budget", "Figure", "Row", "Settings", "measure"]
