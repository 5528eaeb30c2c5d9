"""Reading a run's CSV files; it lives in ``cvaecli.tables``."""

from ..tables import AbsentError, Array, read_table

__all__ = ["AbsentError", "Array", "read_table"]
