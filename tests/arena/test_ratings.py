"""Ratings: as another library's, planted ones recovered, intervals that cover, and battles that cannot tell."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pytest

from curate.arena import ratings, style
from curate.arena.ratings import CENTRE, SCALE, Battles, rate


def simulate(strengths: list[float], count: int, seed: int, ties: float = 0.0, taste: float = 0.0) -> Battles:
    """Return battles of models with these log-odds; with `taste`, answers with more of a feature win more often."""
    chance = np.random.default_rng(seed)
    models = len(strengths)
    left = chance.integers(0, models, count)
    right = (left + chance.integers(1, models, count)) % models
    odds = np.array(strengths)[left] - np.array(strengths)[right]
    contrasts = np.tanh(chance.normal((left - right) / 2, 0.5))  # later models write more
    score = (chance.random(count) < 1 / (1 + np.exp(-odds - taste * contrasts))).astype(float)
    score[chance.random(count) < ties] = 0.5
    battles = Battles(tuple(f"m{i}" for i in range(models)), left, right, score)
    return ratings.with_style(battles, contrasts[:, None].tolist()) if taste else battles


def battles_of(*outcomes: tuple[str, str, float]) -> Battles:
    return ratings.scored([(a, b) for a, b, _ in outcomes], [score for *_, score in outcomes])


def by_name(battles: Battles, **options: object) -> dict[str, ratings.Rating]:
    return {each.model: each for each in rate(battles, **options).models}  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_ratings_equal_those_of_evalica(seed: int) -> None:
    battles = simulate([1.0, 0.2, -0.3, -0.9], 400, seed, ties=0.2)
    names = np.array(battles.models)
    outcomes = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    theirs = evalica.bradley_terry(
        names[battles.left].tolist(),
        names[battles.right].tolist(),
        [outcomes[score] for score in battles.score.tolist()],
        tolerance=1e-13,
        limit=100_000,
    ).scores
    odds = np.log(theirs) - np.log(theirs).mean()
    ours = by_name(battles)
    for name in battles.models:
        assert (ours[name].rating - CENTRE) / SCALE == pytest.approx(float(odds[name]), abs=1e-6)


def test_planted_ratings_are_recovered() -> None:
    planted = [1.5, 0.5, 0.0, -0.5, -1.5]
    for rating in rate(simulate(planted, 40_000, 1)).models:
        assert rating.rating == pytest.approx(CENTRE + SCALE * planted[int(rating.model[1])], abs=12)
        assert rating.rank_low == rating.rank_high


def test_intervals_cover_the_planted_ratings_as_often_as_they_say() -> None:
    planted = [0.8, 0.1, -0.3, -0.6]
    covered = []
    for seed in range(500):
        for rating in rate(simulate(planted, 150, seed)).models:
            covered.append(rating.low <= CENTRE + SCALE * planted[int(rating.model[1])] <= rating.high)
    assert 0.935 < np.mean(covered) < 0.965  # 2,000 intervals of 95 %, four of each seed


def test_style_control_recovers_ratings_that_style_has_shifted() -> None:
    planted = [0.9, 0.3, -0.3, -0.9]
    battles = simulate(planted, 20_000, 3, taste=1.5)
    raw = by_name(Battles(battles.models, battles.left, battles.right, battles.score))
    controlled = by_name(battles, features=("length",))
    truth = {f"m{i}": CENTRE + SCALE * value for i, value in enumerate(planted)}
    assert max(abs(raw[name].rating - truth[name]) for name in truth) > 100
    assert max(abs(controlled[name].rating - truth[name]) for name in truth) < 25
    (effect,) = rate(battles, features=("length",)).style
    size = float(np.sqrt(np.mean(np.array(battles.style) ** 2)))
    assert effect.low < 1.5 * size * SCALE < effect.high


@pytest.mark.parametrize("count", [40, 3000])
def test_style_control_is_a_logistic_regression(count: int) -> None:
    """Its maximum has no slope; without the ridge, statsmodels' binomial GLM has the same coefficients to 1e-14."""
    battles = simulate([0.9, 0.3, -0.3, -0.9], count, 5, ties=0.2, taste=0.8)
    contrasts = np.array(battles.style)
    rated = rate(battles, features=("length",))
    values = {each.model: (each.rating - CENTRE) / SCALE for each in rated.models}
    effect = rated.style[0].points / SCALE
    models = np.array([values[name] for name in battles.models])
    feature = contrasts[:, 0] / np.sqrt(np.mean(contrasts[:, 0] ** 2))
    odds = models[battles.left] - models[battles.right] + effect * feature
    missed = battles.score - 1 / (1 + np.exp(-odds))
    slopes = np.bincount(battles.left, missed, 4) - np.bincount(battles.right, missed, 4)
    assert np.abs(slopes).max() < 1e-6 and models.sum() == pytest.approx(0, abs=1e-9)
    assert missed @ feature == pytest.approx(ratings.RIDGE * effect, abs=1e-6)


def test_the_side_makes_no_difference() -> None:
    battles = simulate([0.5, 0.0, -0.5], 300, 4, taste=0.7)
    assert battles.style is not None
    swapped = Battles(battles.models, battles.right, battles.left, 1 - battles.score, -battles.style)
    both = [rate(each, features=("length",)) for each in (battles, swapped)]
    for one, other in zip(both[0].models, both[1].models, strict=True):
        assert one.rating == pytest.approx(other.rating, abs=1e-6)
        assert one.low == pytest.approx(other.low, abs=1e-6)


def test_a_model_that_never_lost_has_no_upper_bound() -> None:
    rated = rate(battles_of(("a", "b", 1), ("a", "c", 1), ("b", "c", 1), ("c", "b", 1), ("b", "c", 0.5)))
    best = rated.models[0]
    assert best.model == "a" and math.isfinite(best.rating) and best.high == math.inf and best.low > -math.inf
    assert all(each.high < math.inf for each in rated.models[1:])
    assert any("a: never lost a point" in note and "no upper bound" in note for note in rated.notes)
    assert {each.model for each in rated.models if each.low == -math.inf} == {"b", "c"}


def test_groups_that_never_met_are_rated_apart() -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("d", "c")]
    rated = rate(ratings.scored(pairs, [1, 1, 1, 1, 1]))
    assert {each.model: each.group for each in rated.models} == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert sum(each.rating for each in rated.models if each.group == 1) == pytest.approx(2 * CENTRE)
    assert "within each only: a, b; c, d" in rated.notes[0]


def test_a_few_ties_do_not_give_an_interval_of_no_width() -> None:
    for rating in rate(battles_of(("a", "b", 0.5), ("b", "a", 0.5))).models:
        assert rating.rating == pytest.approx(CENTRE)
        assert rating.high - rating.low > 300


def test_ratings_of_one_vote_are_finite_and_say_little() -> None:
    rated = rate(battles_of(("a", "b", 1)))
    assert [each.model for each in rated.models] == ["a", "b"]
    assert (rated.models[0].high, rated.models[1].low) == (math.inf, -math.inf)
    assert len(rated.notes) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, 0, 0)),
        ("# A\n\n- one\n- two\n1. three\n\n**b** and __c__", (42, 1, 3, 2)),
        ("```\n# no\n- no\n**no**\n```\n- yes", (30, 0, 1, 0)),
        ("```\n# an open block\n", (20, 0, 0, 0)),
        ("#hash 2 * 3 ** 4", (16, 0, 0, 0)),
    ],
)
def test_style_is_measured_outside_code(text: str, expected: tuple[int, ...]) -> None:
    assert style.measure([text]) == expected


def test_contrasts_are_of_the_side() -> None:
    assert style.contrast((30, 0, 2, 0), (10, 0, 0, 1)) == (0.5, 0, 1, -1)
