"""Decoding by engines that take one step at a time: what all of those have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from jouleboard.engines.edge.interface import Goes, Loop


class Session(Protocol):
    """Rows under way, with their cache."""

    tokens: torch.Tensor
    """The newest token of every row, shape [rows, 1]; at first what follows from the prompts."""

    def step(self) -> None:
        """Give every row one more token."""

    def keep(self, staying: Sequence[int]) -> None:
        """Drop all rows but some, by their places among those that are there."""

    def cut_back(self) -> None:
        """Take the cache back to the prompts; `tokens` are what they were then."""


def write(session: Session, goes: Goes, most: int) -> Iterator[torch.Tensor]:
    """Decode as long as rows go on; see `Runs.write`."""
    here = list(range(len(session.tokens)))
    for taken in range(1, most + 1):
        yield session.tokens
        going = [goes(row, token) for row, token in zip(here, session.tokens[:, 0].tolist(), strict=True)]
        staying = [index for index, goes_on in enumerate(going) if goes_on]
        here = [here[index] for index in staying]
        if not here or taken == most:
            return
        if len(staying) < len(going):
            session.keep(staying)
        session.step()


def loop(session: Session, steps: int) -> Loop:
    """Return what takes the same steps behind the prompts each time; see `Runs.hold`."""

    def again() -> Iterator[torch.Tensor]:
        session.cut_back()
        for _ in range(steps):
            session.step()
            yield session.tokens

    return again
