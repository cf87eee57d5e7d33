"""Where a comparison is written: the plot, the table, the sheet of pictures; light to import, so checked first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..engine.errors import InputError
from .pictures.plot import check_plot
from .pictures.write import check_folder, kind_of


@final
@dataclass(frozen=True)
class OutputFiles:
    """Three files, None for none."""

    plot: Path | None
    table: Path | None
    sheet: Path | None

    @staticmethod
    def of(
        plot: str | os.PathLike[str] | None, table: str | os.PathLike[str] | None, sheet: str | os.PathLike[str] | None
    ) -> OutputFiles:
        """The three, each checked before any work. Raises InputError on a bad place, and without matplotlib."""
        files = OutputFiles(*(None if path is None else Path(path) for path in (plot, table, sheet)))
        if files.plot is not None:
            check_plot(files.plot)
        if files.table is not None:
            check_folder(files.table)
        if files.sheet is not None and kind_of(files.sheet) != "grid":
            raise InputError(f"output {files.sheet}: expected a file that ends in .png")
        return files
