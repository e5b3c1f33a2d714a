"""Reads what is coming next in threads, in order and in bounded memory.

Decoding and resampling are C code that releases Python's lock, so they run beside the encoder.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from datasets_scripts.preparation.reading import Piece

Item = TypeVar("Item")


@dataclass
class _Slot(Generic[Item]):
    """An item being read: its pieces that wait to be taken, and how its reading ended."""

    item: Item | None = None
    pieces: deque[Piece] = field(default_factory=deque)
    done: bool = False
    error: BaseException | None = None


class ReadAhead(Generic[Item]):
    """Pieces of items, in the items' order, read by threads.

    An item is read by one thread, and may have any number of pieces. Threads stop reading while
    the pieces that were read, and not yet released, weigh more than the limit, or ``max_items`` are
    read ahead; only the item that is next may always have one piece, so that things go on. Errors
    of ``read`` come out where the item's pieces end.
    """

    def __init__(
        self,
        items: Iterable[Item],
        read: Callable[[Item], Iterator[Piece]],
        *,
        num_threads: int,
        limit: int,
        max_items: int = 64,
    ) -> None:
        self._items, self._read = iter(items), read
        self._num_threads, self._limit, self._max_items = num_threads, limit, max_items
        self._slots: deque[_Slot[Item]] = deque()
        self._held = 0
        self._exhausted = self._stopped = False
        self._changed = threading.Condition()
        self._next_item = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ReadAhead[Item]:
        for _ in range(self._num_threads):
            thread = threading.Thread(target=self._run, daemon=True, name="read-ahead")
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *details: Any) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)  # One may wait for an item that never comes; they are daemons.

    def take(self, *, wait: bool) -> tuple[Item, Piece | BaseException | None] | None:
        """The next event; None if all is read or, without ``wait``, nothing is ready.

        An event is an item with its next piece, or, once, with None (it has no more) or the error
        that ended its reading. What ``items`` itself raised is raised after all before it.
        """
        with self._changed:
            while True:
                slot = self._slots[0] if self._slots else None
                if slot is not None and (slot.pieces or slot.done):
                    event = slot.pieces.popleft() if slot.pieces else slot.error
                    if event is slot.error:
                        self._slots.popleft()
                    self._changed.notify_all()
                    if slot.item is None:
                        assert slot.error is not None
                        raise slot.error
                    return slot.item, event
                if not wait or (slot is None and self._exhausted):
                    return None
                self._changed.wait()

    @property
    def finished(self) -> bool:
        """Whether everything was taken."""
        with self._changed:
            return self._exhausted and not self._slots

    def release(self, weight: int) -> None:
        """Says that a piece that was taken is no longer in memory."""
        with self._changed:
            self._held -= weight
            self._changed.notify_all()

    def _run(self) -> None:
        while (slot := self._claim()) is not None:
            assert slot.item is not None
            try:
                for piece in self._read(slot.item):
                    if not self._offer(slot, piece):
                        return
            except BaseException as error:  # It is raised where pieces are taken.
                slot.error = error
            with self._changed:
                slot.done = True
                self._changed.notify_all()

    def _claim(self) -> _Slot[Item] | None:
        """Takes the next item, unless there is none or reading was stopped."""
        with self._next_item:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or len(self._slots) < self._max_items)
                if self._stopped or self._exhausted:
                    return None
            slot: _Slot[Item] = _Slot()
            try:
                slot.item = next(self._items)
            except BaseException as error:  # It is raised where pieces are taken.
                slot.error, slot.done = error, True
            with self._changed:
                self._exhausted = slot.done
                if not isinstance(slot.error, StopIteration):  # That is the end, not an error.
                    self._slots.append(slot)
                self._changed.notify_all()
            return None if slot.done else slot

    def _offer(self, slot: _Slot[Item], piece: Piece) -> bool:
        def room() -> bool:
            starved = bool(self._slots) and self._slots[0] is slot and not slot.pieces
            return self._stopped or self._held + piece.weight <= self._limit or starved

        with self._changed:
            self._changed.wait_for(room)
            if self._stopped:
                return False
            self._held += piece.weight
            slot.pieces.append(piece)
            self._changed.notify_all()
            return True
