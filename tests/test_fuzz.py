"""Some hundred inputs of scripts/fuzz.py: what reads a stranger's file gives a result or an error of ours."""

import sys
from collections import Counter

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import fuzz


@pytest.mark.quick
def test_mutated_files_give_results_or_named_errors(tmp_path):
    every = fuzz.kinds(tmp_path)
    outcomes: Counter[str] = Counter()
    for number in range(15 * len(every)):
        kind = every[number % len(every)]
        outcome, text = fuzz.tried(kind, number, 7, tmp_path)
        assert outcome != "finding", f"{kind.name}, input {number}: {text}"
        outcomes[outcome] += 1
    assert min(outcomes["result"], outcomes["refused"]) > 50
