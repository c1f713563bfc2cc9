"""How annotations are checked in tests: by beartype, with integers where floats are expected."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
