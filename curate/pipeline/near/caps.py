"""Decide which conversations exceed the cap of their prompt, over the whole corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.engine import base
from curate.errors import RecipeError
from curate.filters import caps
from curate.filters.registry import Settings
from curate.filters.semantic import encoder
from curate.filters.semantic.groups import find_leaders
from curate.pipeline.frames import part_file
from curate.pipeline.near.decision import TWINS, Twins
from curate.pipeline.near.parts import PROMPTS
from curate.pipeline.steps import Part
from curate.pipeline.train_marks import WORTH

KEYS = ("part", "row", "prompt")
EVIDENCE = 95  # characters of each prompt


class PromptCap:
    """Finds the conversations of a run that exceed the cap; its workers have written each part's prompts."""

    name = caps.PROMPT_CAP
    surveys = notes_rest = False

    def __init__(self, pool: base.Pool, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._model = str(settings["model"])
        self.divides = not self._model  # prompts that mean the same may be anywhere
        self._threshold = float(str(settings["threshold"]))
        if self._model and not (Path(self._model) / "config.json").is_file():
            raise RecipeError(
                f"filter {self.name!r}: model = {self._model!r} is no folder with a config.json; name a model's folder"
            )

    def survey(self, rows: pl.DataFrame, parts: Sequence[int]) -> None:
        """Nothing has to be known of other prompts."""

    def link(self, parts: Sequence[Part], firsts: Mapping[int, int], folder: Path) -> None:
        """Those to decide on together share a prompt."""

    def pass_by(self, rows: pl.DataFrame) -> None:
        """Those that share no prompt are not capped."""

    def warnings(self) -> Sequence[str]:
        """There are none."""
        return ()

    def find(self, rows: pl.DataFrame, alone: pl.DataFrame) -> Twins:
        """Find the conversations beyond the cap among `rows`, and count those among `alone`.

        Both have part, row, prompt, chain and marks, in record order; `rows` has `order`.
        """
        texts = self._texts(pl.concat([rows.select(*KEYS), alone.select(*KEYS)]).unique()) if self._model else None
        if texts is not None:
            self._encode(texts)
        numbers = rows["order"].to_numpy().astype(np.int64)
        found, groups, figures = self._beyond(rows, texts)
        shown = rows.select(*KEYS)[sorted({row for pair in found for row in pair})]
        known = self._texts(shown) if texts is None else texts
        named = rows.select("part", "row").join(known, on=["part", "row"], how="left", maintain_order="left")["text"]
        twins = pl.DataFrame(
            [
                (numbers[row], numbers[best], figures[row] if self._model else None, _evidence(named[row], named[best]))
                for row, best in found
            ],
            schema=TWINS,
            orient="row",
        )
        edges = np.stack([numbers, numbers[groups]], axis=1)[groups != np.arange(len(groups))]
        return Twins(twins, edges, len(self._beyond(alone, texts)[0]))

    def _texts(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return part, row, prompt (its hash), text and language of these conversations."""
        parts = [
            pl.read_ipc(part_file(self._folder, number, PROMPTS))
            .join(own.select("row", "prompt"), on="row", how="inner", maintain_order="left")
            .with_columns(part=pl.lit(number, pl.UInt32))
            for (number,), own in rows.partition_by("part", as_dict=True).items()
        ]
        return pl.concat(parts) if parts else rows.with_columns(text=pl.lit(""), language=pl.lit(""))

    def _beyond(
        self, rows: pl.DataFrame, texts: pl.DataFrame | None
    ) -> tuple[list[tuple[int, int]], NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows beyond the cap with the best of their group, each row's group, and its cosine to that."""
        ranked = rows.select("part", "row", "prompt", **WORTH).with_row_index("place")
        if texts is not None:
            ranked = ranked.join(texts, on=list(KEYS), how="left", maintain_order="left")
        ranked = ranked.sort("untrained", "messages", "last", "place", descending=[False, True, False, False])
        first = ranked.unique("prompt", keep="first", maintain_order=True)
        leaders, cosines = self._leaders(first)
        labels = first.select("prompt", group=pl.Series(leaders), cosine=pl.Series(cosines))
        order = ranked["place"].to_list()
        grouped = rows.select("prompt").join(labels, on="prompt", how="left", maintain_order="left")
        groups = grouped["group"].to_numpy()
        found = caps.prompt_cap(caps.Grouped(groups.tolist(), order), **self._settings)  # type: ignore[arg-type]  # checked
        return found, groups, grouped["cosine"].to_numpy()

    def _leaders(self, prompts: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the row of each different prompt's group, and its cosine to that one's prompt."""
        leaders = prompts["place"].to_numpy().astype(np.int64)
        cosines = np.ones(len(leaders))
        if self._model:
            known = prompts.join(self._places, on=["prompt", "language"], how="left", maintain_order="left")
            for language in known["language"].filter(known["vector"].is_not_null()).unique():
                own = np.flatnonzero(((known["language"] == language) & known["vector"].is_not_null()).to_numpy())
                nearest, figures = find_leaders(self._vectors[known["vector"].gather(own).to_numpy()], self._threshold)
                leaders[own], cosines[own] = leaders[own][nearest], figures
        return leaders, cosines

    def _encode(self, texts: pl.DataFrame) -> None:
        """Encode each different prompt in a language of the model once."""
        languages: Sequence[str] = self._settings["languages"]  # type: ignore[assignment]  # checked by the registry
        chosen = texts.filter(pl.col("language").is_in(list(languages)) & pl.col("text").is_not_null())
        chosen = chosen.sort("text").unique(["prompt", "language"], keep="first", maintain_order=True)
        self._vectors = encoder.load(self._model)(chosen["text"].to_list()).astype(np.float16)
        self._places = chosen.select("prompt", "language").with_row_index("vector")


def _evidence(own: str | None, best: str | None) -> str:
    return " ≈ ".join(f"“{' '.join((text or '')[: 2 * EVIDENCE].split())[:EVIDENCE]}”" for text in (own, best))
