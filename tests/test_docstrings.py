"""The examples in docstrings run, and give what they say."""

import doctest
import importlib

import pytest
from conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "unetseg").rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.quick
@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert results.attempted
    assert not results.failed
