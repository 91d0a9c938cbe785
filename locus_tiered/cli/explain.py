"""``explain``: the stack as a tree, and for every capability who grants it or vetoes it."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from locus_tiered.cli.answers import ExplainAnswer, Node, Verdict
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.opening import Place, store_of
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean
from locus_tiered.cli.working import plain_table
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf

__all__ = ["explain"]


def explain(stack: Stack, allow_import: AllowImport = False, json: Json = False, debug: Debug = False) -> None:
    """Show a stack as a tree, and who grants or vetoes each capability.

    No server is touched.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        roles = {id(store_of(place.layer)): place for place in opened.places}
        answer = ExplainAnswer(
            stack=opened.name,
            tree=_node(opened.layer, roles),
            capabilities={
                flag: Verdict(granted=verdict.granted, member=verdict.member, reason=verdict.reason)
                for flag, verdict in opened.layer.explain().items()
            },
        )
        return Done(answer, Exit.FINE, lambda console: _show(console, answer))

    run(Session("explain", json=json), work, debug=debug)


def _node(layer: Layer, roles: dict[int, Place]) -> Node:
    below = _below(layer)
    plain = layer.backend if isinstance(layer, Leaf) else layer
    described = repr(layer)
    for member in sorted((repr(each) for each in layer.walk() if each is not layer), key=len, reverse=True):
        described = described.replace(member, "...")
    place = roles.get(id(layer))
    return Node(
        kind=type(plain).__name__,
        name=layer.name if place is None else place.name,
        description=described,
        role=None if place is None else place.role,
        members=[_node(member, roles) for member in below],
    )


def _below(layer: Layer) -> list[Layer]:
    """The members as a user wrote them: the fold of tiers unfolded."""
    from locus_tiered.layers.tiered import TieredCheckpointer

    if not isinstance(layer, TieredCheckpointer):
        return list(layer.members())
    tiers: list[Layer] = []
    each: Layer = layer
    while each is not layer.home:
        near, each = each.members()
        if type(near).__name__ != "_Nowhere":
            tiers.append(near)
    return [*tiers, layer.home]


def _label(node: Node) -> Text:
    label = Text(clean(node.name), "bold")
    if node.role is not None:
        label.append(f"  {node.role}", "green" if node.role == "home" else "cyan")
    label.append(f"\n{clean(node.description)}", "dim")
    return label


def _show(console: Console, answer: ExplainAnswer) -> None:
    tree = Tree(_label(answer.tree))

    def grow(branch: Tree, node: Node) -> None:
        for member in node.members:
            grow(branch.add(_label(member)), member)

    grow(tree, answer.tree)
    console.print(tree)
    table = plain_table("capability", "", "says", "because")
    for flag, verdict in answer.capabilities.items():
        there = Text("yes", "green") if verdict.granted else Text("no", "red")
        table.add_row(Text(flag), there, Text(clean(verdict.member)), Text(clean(verdict.reason)))
    console.print()
    console.print(table)
