"""How many inputs a worker takes at once: one while files are decoded, several from the cache.

Where nothing is decoded the head is nearly all the work, and it runs faster over several videos
together. Where something is, a group would only keep the inputs behind the first from other
workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

MOST_AT_ONCE: Final = 16  # videos of a minute: twice the rows that one pass of the head takes


class InputGroups(Generic[Item]):
    """Inputs in groups, as many in each as the last ones suggest, and single ones first.

    The groups double as long as whole ones were known, and end with the first input that was
    not. An iterator that may go on after it had no more: `put_back` gives it another. For one
    thread.

    Args:
        items: taken as late as possible.
        most: inputs in a group; 1 never makes groups.
    """

    def __init__(self, items: Iterable[Item], *, most: int = MOST_AT_ONCE) -> None:
        self._items = iter(items)
        self._most = most
        self._size = 1
        self._singles: deque[Item] = deque()

    def __iter__(self) -> Iterator[list[Item]]:
        return self

    def __next__(self) -> list[Item]:
        if self._singles:
            return [self._singles.popleft()]
        group: list[Item] = []
        for item in self._items:
            group.append(item)
            if len(group) >= self._size:
                break
        if not group:
            raise StopIteration
        return group

    def were_known(self, count: int, *, of: int) -> None:
        """So many inputs of a group needed no decoding."""
        self._size = min(2 * max(self._size, of), self._most) if count == of else 1

    def put_back(self, item: Item) -> None:
        """This one comes next, alone."""
        self._singles.append(item)
