"""`make test` leaves out what takes long, and no name in its list is one that no test has."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, forked
from tiers import SLOW, clock, slow_of

pytest_plugins = ["pytester"]


def test_a_test_is_slow_where_one_of_its_cases_takes_more_than_a_second():
    assert slow_of({"a": [0.1, 1.1], "b": [0.9, 0.9]}, known=set()) == ["a"]


def test_a_slow_test_that_was_not_run_stays_and_one_that_was_is_judged_anew():
    assert slow_of({"a": [0.1]}, known={"a", "b"}) == ["b"]


def test_every_slow_test_is_there():
    for name in SLOW.read_text().splitlines():
        path, *_, function = name.split("::")
        assert re.search(rf"^ *def {function}\(", (ROOT / path).read_text(), re.MULTILINE), f"{name} is no test"


ALL_OF_IT = {"test_startup.py", "test_wheel.py"}
"""Files whose one subject takes long."""


def decorators_by_test(path: Path) -> dict[str, list[str]]:
    """Return the decorators of each test, by its name in SLOW: `test_x` or `TestX::test_x`."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        members = [(f"{node.name}::", one) for one in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        for prefix, member in members:
            if isinstance(member, ast.FunctionDef) and member.name.startswith("test_"):
                found[prefix + member.name] = [ast.unparse(decorator) for decorator in member.decorator_list]
    return found


def test_every_subject_has_a_test_that_is_run_at_once():
    slow = {*SLOW.read_text().splitlines()}
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        at_once = [
            test
            for test, decorators in decorators_by_test(path).items()
            if (f"{name}::{test}" not in slow or "pytest.mark.quick" in decorators)
            and not any("skip" in decorator for decorator in decorators)
        ]
        assert at_once or path.name in ALL_OF_IT, f"{path}: mark a short test as quick"


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tiers.SLOW", pytester.path / "slow.txt")
    monkeypatch.setattr("tiers.import_late", lambda: None)
    (pytester.path / "slow.txt").write_text("test_example.py::test_short\n")
    pytester.makepyfile(
        test_example="""
        import time, pytest

        @pytest.mark.parametrize("seconds", [0, 1.2])
        def test_long(seconds):
            begun = time.process_time()
            while time.process_time() < begun + seconds:
                pass

        def test_short():
            pass

        @pytest.mark.quick
        def test_marked():
            pass
        """
    )
    return pytester


def test_what_is_measured_is_left_out_from_then_on(example):
    example.inline_run("-p", "tiers", "-p", "no:randomly", "--measure").assertoutcome(passed=4)
    assert listed(example) == ["test_example.py::test_long"]
    example.inline_run("-p", "tiers", "-p", "no:randomly", "-m", "not slow").assertoutcome(passed=2)
    example.inline_run("-p", "tiers", "-p", "no:randomly", "-m", "slow").assertoutcome(passed=2)


def test_a_test_that_is_marked_quick_is_never_left_out(example):
    (example.path / "slow.txt").write_text("test_example.py::test_marked\n")
    example.inline_run("-p", "tiers", "-p", "no:randomly", "-m", "slow").assertoutcome(passed=0)


def listed(example):
    return (example.path / "slow.txt").read_text().splitlines()


def test_what_tests_of_a_file_share_counts_for_each_of_them(example):
    example.makepyfile(
        test_example="""
        import time, pytest

        @pytest.fixture(scope="module")
        def trained():
            begun = time.process_time()
            while time.process_time() < begun + 1.2:
                pass

        def test_first(trained): pass
        def test_second(trained): pass
        def test_other(): pass
        """
    )
    (example.path / "slow.txt").write_text("")
    example.inline_run("-p", "tiers", "-p", "no:randomly", "--measure").assertoutcome(passed=3)
    assert listed(example) == ["test_example.py::test_first", "test_example.py::test_second"]


def test_a_command_that_was_forked_counts():
    begun = clock()
    assert forked("unetseg.report", "--help").returncode == 0
    assert clock() > begun
