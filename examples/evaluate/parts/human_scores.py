"""Compute the figures of Table 5 from people's answers: shares, intervals, agreement, and a test against MAGNET.

The interval is a percentile bootstrap over stories (scipy), because stories were drawn at random and several answers
to one story depend on each other; an interval over single answers would be too narrow. If all stories have the same
share, for example if no fill of a system was found appropriate, resampling gives width zero; the interval is then
Wilson's for the number of stories.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from examples.evaluate.parts.fill_systems import MAGNET

CONFIDENCE = 0.95
RESAMPLES = 9999


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Run McNemar's exact test on two systems and the same stories."""
    from scipy.stats import binomtest  # needs the extra `eval`

    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_one + only_other
    p = binomtest(only_one, discordant).pvalue if discordant else 1.0
    return {"only_first": only_one, "only_second": only_other, "p": float(p)}


def answers_by_system(key: Mapping[str, Any], answers: Mapping[str, Mapping[str, bool]]) -> dict[str, np.ndarray]:
    """Unblind the answers.

    Returns:
        `dict[str, numpy.ndarray]`: Of each system `bool` of shape `(annotators, stories)`.
    """
    stories = 1 + max(item["story"] for item in key["items"].values())
    tables = {system: np.zeros((len(answers), stories), dtype=bool) for system in key["systems"]}
    for item, owner in key["items"].items():
        given = [of_annotator[item] for of_annotator in answers.values()]
        for system in owner["systems"]:
            tables[system][:, owner["story"]] = given
    return tables


def share_interval(shares: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean over stories, see above.

    Args:
        shares (`numpy.ndarray` of shape `(stories,)`): Of each story the share of annotators who said yes, 0 to 1.
    """
    from scipy.stats import binomtest, bootstrap  # needs the extra `eval`

    if np.all(shares == shares[0]):
        yes = round(float(shares[0]) * len(shares))
        low, high = binomtest(yes, len(shares)).proportion_ci(CONFIDENCE, method="wilson")
    else:
        low, high = bootstrap(
            (shares,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(low), float(high)


def agreement(table: np.ndarray) -> float | None:
    """Return Cohen's kappa of two annotators, or its mean over all pairs of annotators.

    Args:
        table (`numpy.ndarray` of shape `(annotators, items)`): Their answers.
    """
    from sklearn.metrics import cohen_kappa_score  # needs the extra `eval`

    kappas = []
    for first, second in combinations(table, 2):
        if len(np.unique([first, second])) == 1:
            return None
        kappas.append(cohen_kappa_score(first, second))
    return float(np.mean(kappas)) if kappas else None


def score_systems(tables: Mapping[str, np.ndarray], *, seed: int) -> dict[str, dict[str, float]]:
    """Compute the figures of each system."""
    scores: dict[str, dict[str, float]] = {}
    for system, table in tables.items():
        low, high = share_interval(table.mean(axis=0), seed=seed)
        row = {"appropriate": 100 * float(table.mean()), "interval_low": 100 * low, "interval_high": 100 * high}
        kappa = agreement(table)
        if kappa is not None:
            row["kappa"] = kappa
        if system != MAGNET and MAGNET in tables:
            row["mcnemar_p"] = mcnemar(_majority(tables[MAGNET]), _majority(table))["p"]
        scores[system] = row
    return scores


def overall_agreement(key: Mapping[str, Any], answers: Mapping[str, Mapping[str, bool]]) -> float | None:
    """Return the agreement over all items of the form, each counted once."""
    annotators: Sequence[Mapping[str, bool]] = list(answers.values())
    return agreement(np.array([[of_annotator[item] for item in key["items"]] for of_annotator in annotators]))


def _majority(table: np.ndarray) -> np.ndarray:
    """Return for each story whether more than half of the annotators find the fill appropriate."""
    majority: np.ndarray = table.mean(axis=0) > 0.5
    return majority
