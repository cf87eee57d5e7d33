"""The winner of a search is never worse than the default or DDIM on the seeds that judge."""

from __future__ import annotations

from collections.abc import Sequence

from .halving import Trial


def guarded(trials: Sequence[Trial]) -> tuple[list[Trial], str | None]:
    """The trials, best first, and a line where the default or the best DDIM had to take the first place.

    The first of `trials` is best on the seeds that chose. On few seeds that can be chance: where the default or DDIM
    are better on the held-out seeds, the better of the two comes first.
    """
    ordered = list(trials)
    judged = [trial for trial in ordered if trial.held_out_error is not None]
    if not judged or ordered[0].held_out_error is None:
        return ordered, None
    plain = [trial for trial in judged if trial.candidate.solver == "ddim"][:1]
    rivals = plain + [trial for trial in judged if trial.stays]
    best = min(rivals, key=_held_out, default=ordered[0])
    if _held_out(best) >= _held_out(ordered[0]):
        return ordered, None
    first = ordered[0]
    ordered.remove(best)
    name = "the default" if best.stays else "DDIM"
    line = (
        f"{first.program.solver} was best on the seeds that chose, {name} on those that judge "
        f"({_held_out(first):.4g} against {_held_out(best):.4g}): {name} comes first; more seeds would tell"
    )
    return [best, *ordered], line


def _held_out(trial: Trial) -> float:
    assert trial.held_out_error is not None
    return trial.held_out_error
