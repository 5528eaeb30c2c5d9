"""Which rows of a global batch are computed together, and by which process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..config.schema import TrainConfig
from ..errors import UserError


class Rows(NamedTuple):
    """Rows of a global batch: ``told`` have z from the posterior, ``untold`` from the prior."""

    told: range
    untold: range

    @property
    def numbers(self) -> list[int]:
        """All of them, the told ones first."""
        return [*self.told, *self.untold]


@dataclass(frozen=True)
class Split:
    """A global batch cut into parts, each with its share of both kinds of rows.

    Attributes:
        batch: rows in all; the first ``told`` of them have z from the posterior.
        rank, size: this process's number and how many there are.
        accumulate: parts that a process computes one after the other.
    """

    batch: int
    told: int
    rank: int = 0
    size: int = 1
    accumulate: int = 1

    @classmethod
    def of(cls, train: TrainConfig, rank: int = 0, size: int = 1) -> Split:
        """The split of ``train.batch_size`` that its ``prior_share`` and ``accumulate`` ask for.

        Raises:
            UserError: a positive ``prior_share`` rounds to no row or to all of them, or a part would be
                without rows of a kind that the batch has.
        """
        batch = train.batch_size
        untold = round(batch * train.prior_share)
        if train.prior_share and untold in (0, batch):
            raise UserError(
                f"train.prior_share: {train.prior_share:g} of train.batch_size {batch} rounds to"
                f" {'every row' if untold else 'no row'}",
                f"possible shares are multiples of 1/{batch} below 1; change it, or raise train.batch_size"
                if batch > 1
                else "raise train.batch_size to 2 or more, or set train.prior_share=0",
            )
        split = cls(batch, batch - untold, rank, size, train.accumulate)
        parts = size * train.accumulate
        if split.told < parts or 0 < untold < parts:
            kinds = f" ({split.told} + {untold} by train.prior_share)" if untold else ""
            raise UserError(
                f"train.batch_size: {batch} rows{kinds} are too few for {size} processes"
                f" x train.accumulate {train.accumulate}",
                f"every part needs a row{' of both kinds' if untold else ''}: raise it, or use fewer",
            )
        return split

    @property
    def prior_share(self) -> float:
        """The share of the rows with z from the prior: ``train.prior_share`` rounded to whole rows."""
        return (self.batch - self.told) / self.batch

    @property
    def mine(self) -> Rows:
        """The rows of this process."""
        return self._rows(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)

    def part(self, n: int) -> Rows:
        """The rows of this process's part ``n``."""
        first = self.rank * self.accumulate + n
        return self._rows(first, first + 1)

    def held(self, n: int) -> Rows:
        """Where the rows of part ``n`` are among this process's own."""
        mine, part = self.mine, self.part(n)
        told = part.told.start - mine.told.start
        untold = len(mine.told) + part.untold.start - mine.untold.start
        return Rows(range(told, told + len(part.told)), range(untold, untold + len(part.untold)))

    def _rows(self, first: int, last: int) -> Rows:
        """Of the parts ``first`` to ``last`` (exclusive): as even a share as whole rows allow."""
        parts, untold = self.size * self.accumulate, self.batch - self.told
        return Rows(
            range(self.told * first // parts, self.told * last // parts),
            range(self.told + untold * first // parts, self.told + untold * last // parts),
        )
