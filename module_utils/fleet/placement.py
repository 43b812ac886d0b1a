"""The decision: which replica of which model stands on which GPUs.

It knows nothing of memory, precision or documents: a model comes as a ``Wish`` with the shapes that fit and what each
carries, a host as a ``HostRoom`` with the GPUs that may be used. What runs and may stay, stays. What is still needed is
chosen by an integer program (``placement_sizing``) and put on the best hosts. A model that still lacks something takes
the GPUs of replicas of strictly lower priority, the lowest first; these look for another place. In the end, what is not
needed any more goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .placement_repair import repair
from .placement_run import Placing
from .placement_wide import add_wide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .placement_problem import Decision, HostRoom, Standing, Wish


def decide(
    wishes: Sequence[Wish],
    hosts: Sequence[HostRoom],
    standing: Sequence[Standing],
    *,
    optimize: bool = False,
    draft: bool = False,
    last_resorts: Callable[[], Sequence[Wish]] | None = None,
) -> Decision:
    """Place every replica.

    Args:
        wishes: one for each model; the order does not matter.
        hosts: the hosts that may be changed; the order does not matter.
        standing: what runs on them, of the wished models only.
        optimize: run for the best packing; what runs may be moved for it.
        draft: when there is no room for all, do not look for the best way to carry a part, and move nothing for it: the
            caller asks again with more shapes.
        last_resorts: gives the same wishes with parts of GPUs and shapes over several hosts; asked only where something
            is left otherwise.
    """
    placing = Placing(wishes, hosts, standing, optimize=optimize)
    for state in placing.order:
        placing.keep(state)
    for state in placing.order:
        placing.fill_pins(state)
    placing.add_chosen(all_or_nothing=draft)
    if draft and any(state.wants_more or state.pins for state in placing.order):
        return placing.decision()
    placing.settle()
    if not draft and not optimize:
        repair(placing)
        if last_resorts is not None and any(not state.tally.complete for state in placing.order):
            placing.offer(last_resorts())
            repair(placing, sharing=True)
    add_wide(placing)
    return placing.decision()
