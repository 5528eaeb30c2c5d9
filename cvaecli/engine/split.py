"""How the rows of a global batch are divided: between posterior and prior, processes, and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..config.schema import TrainConfig
from ..errors import UserError


class Rows(NamedTuple):
    """Rows of a batch by where their z comes from: the posterior, or the prior."""

    posterior: range
    prior: range

    @property
    def all(self) -> list[int]:
        """All of them, the posterior rows first."""
        return [*self.posterior, *self.prior]


@dataclass(frozen=True)
class Split:
    """A global batch divided into micro-batches, each with its share of both kinds of rows.

    Attributes:
        batch_size: rows of the global batch.
        posterior_rows: how many of them, from the first on, have z from the posterior; the others have it
            from the prior.
        rank, size: this process's number, and the number of processes.
        accumulate: number of micro-batches that a process computes one after the other.
    """

    batch_size: int
    posterior_rows: int
    rank: int = 0
    size: int = 1
    accumulate: int = 1

    @classmethod
    def of(cls, train: TrainConfig, rank: int = 0, size: int = 1) -> Split:
        """The split that ``train.batch_size``, ``prior_share`` and ``accumulate`` ask for.

        Raises:
            UserError: a positive ``prior_share`` rounds to no row or to all rows, or a micro-batch would have
                no row of a kind that the batch has.
        """
        batch, share = train.batch_size, train.prior_share
        prior = round(batch * share)
        if share and prior in (0, batch):
            raise UserError(
                f"train.prior_share: {share:g} of train.batch_size {batch} rounds to"
                f" {'every row' if prior else 'no row'}",
                f"possible shares are multiples of 1/{batch} below 1; change it, or raise train.batch_size"
                if batch > 1
                else "raise train.batch_size to 2 or more, or set train.prior_share=0",
            )
        split = cls(batch, batch - prior, rank, size, train.accumulate)
        count = size * train.accumulate
        if split.posterior_rows < count or 0 < prior < count:
            kinds = f" ({split.posterior_rows} + {prior} by train.prior_share)" if prior else ""
            raise UserError(
                f"train.batch_size: {batch} rows{kinds} are too few for {size} processes"
                f" x train.accumulate {train.accumulate}",
                f"every micro-batch needs a row{' of both kinds' if prior else ''}: raise train.batch_size,"
                " or use fewer processes or a lower train.accumulate",
            )
        return split

    @property
    def prior_rows(self) -> int:
        """How many rows of the global batch have z from the prior."""
        return self.batch_size - self.posterior_rows

    @property
    def prior_share(self) -> float:
        """The share of the rows with z from the prior: ``train.prior_share`` rounded to whole rows."""
        return self.prior_rows / self.batch_size

    @property
    def fewest(self) -> int:
        """Fewest rows of one kind in a micro-batch, those of all processes together."""
        return min(rows for rows in (self.posterior_rows, self.prior_rows) if rows) // self.accumulate

    @property
    def mine(self) -> Rows:
        """The rows of this process, as numbers in the global batch."""
        return self._rows(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)

    def micro_batch(self, n: int) -> Rows:
        """The rows of this process's micro-batch ``n``, as numbers in the global batch."""
        first = self.rank * self.accumulate + n
        return self._rows(first, first + 1)

    def local_micro_batch(self, n: int) -> Rows:
        """The rows of this process's micro-batch ``n``, as positions in ``mine.all``."""
        mine, own = self.mine, self.micro_batch(n)
        posterior = own.posterior.start - mine.posterior.start
        prior = len(mine.posterior) + own.prior.start - mine.prior.start
        return Rows(range(posterior, posterior + len(own.posterior)), range(prior, prior + len(own.prior)))

    def _rows(self, first: int, last: int) -> Rows:
        """The rows of the micro-batches ``first`` to ``last - 1``, divided as evenly as whole rows allow."""
        count, posterior, prior = self.size * self.accumulate, self.posterior_rows, self.prior_rows
        return Rows(
            range(posterior * first // count, posterior * last // count),
            range(posterior + prior * first // count, posterior + prior * last // count),
        )
