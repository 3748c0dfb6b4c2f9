"""Where it was lost: how many of the pairs to be found each stage still had.

Owns the counts by stage and by source, over pairs (not over users), from a results folder alone.
"""

from dataclasses import dataclass

import polars as pl

from recsys.bench.names import NO_INTEREST, TWO_STAGE
from recsys.bench.result import ResultFolder

ON = ("protocol", "cut", "user_id", "item_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of candidates: how many pairs it had among the candidates, and how many no other one had."""

    name: str
    found: int
    alone: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """How many pairs were left after each stage, under one protocol.

    Attributes:
        protocol: its name.
        k: length of the final lists.
        depth: how many candidates each user had at most.
        pairs: to be found.
        candidates: among the candidates; nothing after stage 1 can find more.
        retrieval: in the first k of the blend of the sources.
        no_interest: in the first k of the system without the interest score; None where it was not run.
        final: in the first k at the end.
        rescued: of these, not in the first k of the blend.
        dropped: in the first k of the blend, but not at the end.
        sources: by name.
    """

    protocol: str
    k: int
    depth: int
    pairs: int
    candidates: int
    retrieval: int
    no_interest: int | None
    final: int
    rescued: int
    dropped: int
    sources: tuple[Source, ...]

    @property
    def sentence(self) -> str:
        """Where most was lost."""
        missed, outranked = self.pairs - self.candidates, self.candidates - self.final
        if not self.pairs:
            return "There was nothing to find."
        where = "before the ranker saw it" if missed >= outranked else "in the ranking"
        return (
            f"Of {self.pairs:,} items to be found, {missed:,} ({missed / self.pairs:.0%}) were not among the "
            f"candidates and {outranked:,} ({outranked / self.pairs:.0%}) were, but not in the first {self.k}: "
            f"most was lost {where}. The ranker brought {self.rescued:,} into the first {self.k} and "
            f"pushed {self.dropped:,} out."
        )


def waterfalls(folder: ResultFolder) -> tuple[Waterfall, ...]:
    """One for each protocol under which the two-stage system has candidates; empty where it was not run.

    Raises:
        InvalidData: the folder lacks a file.
    """
    candidates = folder.candidates.filter(pl.col("system") == TWO_STAGE)
    protocols = [table.protocol for table in folder.result.tables if table.protocol in set(candidates["protocol"])]
    return tuple(_waterfall(folder, candidates.filter(pl.col("protocol") == name), name) for name in protocols)


def _waterfall(folder: ResultFolder, candidates: pl.DataFrame, protocol: str) -> Waterfall:
    k = folder.result.k
    truth = folder.truth.filter(pl.col("protocol") == protocol)
    found = truth.join(candidates.select(*ON, place="rank", source="source"), on=ON, how="left")
    final = _first(folder, TWO_STAGE, k).select(*ON, final=pl.lit(value=True))
    found = found.join(final, on=ON, how="left").with_columns(
        pl.col("final").fill_null(value=False), near=(pl.col("place") <= k).fill_null(value=False)
    )
    plain = NO_INTEREST in folder.result.systems
    return Waterfall(
        protocol=protocol,
        k=k,
        depth=int(candidates["rank"].max() or 0),  # type: ignore[arg-type]
        pairs=found.height,
        candidates=found.height - found["place"].null_count(),
        retrieval=int(found["near"].sum()),
        no_interest=truth.join(_first(folder, NO_INTEREST, k), on=ON, how="semi").height if plain else None,
        final=int(found["final"].sum()),
        rescued=found.filter(pl.col("final") & ~pl.col("near")).height,
        dropped=found.filter(~pl.col("final") & pl.col("near")).height,
        sources=_sources(found, candidates),
    )


def _first(folder: ResultFolder, system: str, k: int) -> pl.DataFrame:
    return folder.lists.filter((pl.col("system") == system) & (pl.col("rank") <= k))


def _sources(found: pl.DataFrame, candidates: pl.DataFrame) -> tuple[Source, ...]:
    named = found.drop_nulls("source").with_columns(pl.col("source").str.split("+"))
    alone = named.filter(pl.col("source").list.len() == 1).explode("source")["source"].to_list()
    every = named.explode("source")["source"].to_list()
    names = sorted(candidates["source"].drop_nulls().str.split("+").explode().unique())
    made = [Source(name=name, found=every.count(name), alone=alone.count(name)) for name in names]
    return tuple(sorted(made, key=lambda source: (-source.found, source.name)))
