"""The checker that the tests put on every function of the package: ints may stand for floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
