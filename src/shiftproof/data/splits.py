"""DomainBed's splits, bit for bit: every domain has a part to train on (in) and a held-out part (out)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import SplitRule
from shiftproof.base.randomness import seed_hash
from shiftproof.data.domain import Domain

HOLDOUT_FRACTION = 0.2
"""Share of each domain that is held out of training, for validation."""


class Split(NamedTuple):
    """Indices of the images of one domain, int64.

    Attributes:
        in_: in a source domain, images to train on; in a target domain, images of the reported accuracy.
        out: held-out images, for validation in a source domain and for the oracle in a target domain.
    """

    in_: NDArray[np.int64]
    out: NDArray[np.int64]


def random_split(count: int, trial_seed: int, domain: int) -> Split:
    """Split a domain as DomainBed does. The trial seed and the domain's position alone determine the split.

    Raises:
        ValueError: a part would be empty.
    """
    keys = np.arange(count)
    np.random.RandomState(seed_hash(trial_seed, domain)).shuffle(keys)
    held_out = int(count * HOLDOUT_FRACTION)
    if held_out == 0:
        raise ValueError(f"a domain of {count} images is too small to split; it needs at least 5")
    return Split(keys[held_out:], keys[:held_out])


def grouped_split(groups: NDArray[np.int64], trial_seed: int, domain: int) -> Split:
    """Split a domain like `random_split`, but keep the images of a group together.

    Groups are held out in shuffled order, skipping those that no longer fit, until a fifth of the images is held out.
    If the fifth is not met exactly, one more group is held out if this comes closer. Indices are in ascending order.

    Args:
        groups: int64, shape (n,), as in `Domain`.
        trial_seed: number of the trial.
        domain: the domain's position in the data set.

    Raises:
        ValueError: a part would be empty.

    Examples:
        >>> import numpy as np
        >>> from shiftproof.data import grouped_split
        >>> patients = np.repeat(np.arange(10), 3)  # three rows each
        >>> split = grouped_split(patients, trial_seed=0, domain=0)
        >>> set(patients[split.in_]) & set(patients[split.out])
        set()
    """
    numbers, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.arange(len(numbers))
    np.random.RandomState(seed_hash(trial_seed, domain)).shuffle(order)
    held_out = np.zeros(len(numbers), dtype=bool)
    missing = int(len(groups) * HOLDOUT_FRACTION)
    for group in order:
        if sizes[group] <= missing:
            held_out[group] = True
            missing -= sizes[group]
    left = order[~held_out[order]]
    if missing and len(left) > 1:
        smallest = left[sizes[left].argmin()]
        held_out[smallest] = sizes[smallest] < 2 * missing
    if not 0 < held_out.sum() < len(numbers):
        raise ValueError(f"a domain of {len(groups)} images in {len(numbers)} groups is too small to split by groups")
    return Split(np.flatnonzero(~held_out[members]), np.flatnonzero(held_out[members]))


def split_domain(domain: Domain, rule: SplitRule, trial_seed: int, position: int) -> Split:
    """Split a domain at random as DomainBed does, or by its groups if it has any and the rule is "grouped".

    Args:
        domain: the domain.
        rule: "random" or "grouped".
        trial_seed: number of the trial.
        position: the domain's position in the data set.

    Raises:
        ValueError: a part would be empty.
    """
    try:
        if rule == "grouped" and domain.groups is not None:
            return grouped_split(domain.groups, trial_seed, position)
        return random_split(len(domain), trial_seed, position)
    except ValueError as error:
        raise ValueError(f"domain {domain.name}: {error}") from error
