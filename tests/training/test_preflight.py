"""What is refused before a training begins, because its end could not be written."""

from types import SimpleNamespace

import pytest

from unetseg.errors import UserError
from unetseg.training import preflight


def data(*names):
    examples = [SimpleNamespace(name=name) for name in names]
    return SimpleNamespace(check=lambda: None, collection=SimpleNamespace(splits={"train": [], "test": examples}))


def test_a_file_name_that_no_table_can_hold_is_refused():
    with pytest.raises(UserError, match=r"isn't UTF-8: 'K\\udce4tzchen'"):
        preflight.data(data("Hündchen", b"K\xe4tzchen".decode("utf-8", "surrogateescape")))


def test_any_other_name_is_taken():
    preflight.data(data("Kätzchen", "a=b, c", "猫"))
