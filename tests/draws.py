"""The values that a search draws for hyperparameters alone."""

from shiftproof.protocol.settings import setting


def draw(hparams, hparam_seed, trial_seed, dialect="shiftproof"):
    drawn = setting({"algorithm": hparams}, {}, hparam_seed, trial_seed, dialect)
    return {name.removeprefix("algorithm."): value for name, value in drawn.items()}
