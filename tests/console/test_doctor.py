"""What the doctor finds, and what it takes for an illness."""

import pytest

from unetseg.console import doctor
from unetseg.training import preflight


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda host: False)


def test_a_machine_that_runs_the_tests_lacks_nothing_that_is_needed(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for word in (
        "python ",
        "torch ",
        "CPU ",
        "GPU",
        "C++ compiler",
        "Oxford-IIIT Pet",
        "huggingface.co",
        "shared memory",
    ):
        assert word in text
    assert "HF_HUB_OFFLINE" in text, "what keeps from asking the network is named"
    assert "no answer in 3 s: the download of data=pets won't work" in text
    assert max(map(len, text.splitlines())) < 160


def test_a_package_that_is_missing_or_too_old_is_named_with_the_command_that_brings_it(monkeypatch, capsys):
    needs = [("nosuchpackage", ">=1", ""), ("torch", ">=99", ""), ("nosuchextra", ">=2", "export")]
    monkeypatch.setattr(doctor, "requirements", lambda: iter(needs))
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "! nosuchpackage" in text
    assert "missing: pip install 'nosuchpackage>=1'" in text
    assert ">=99 is needed" in text
    assert "nosuchextra missing: pip install 'unetseg[export]'" in text


def test_an_absent_extra_alone_is_no_illness(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: iter([("nosuchextra", ">=2", "export")]))
    assert doctor.main([]) == 0


def test_a_hub_that_is_not_asked_is_no_answer(monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda host: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = next(finding for finding in doctor.network() if finding.name == "huggingface.co")
    assert hub.state == "note"
    assert hub.text.startswith("not asked, as HF_HUB_OFFLINE is set: model.weights=imagenet won't work")


def test_a_folder_that_cannot_be_written_to_is_noted(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    runs = next(doctor.disk())
    assert runs.state == "note"
    assert "can't be written to: output=FOLDER elsewhere" in runs.text


def test_options_are_refused(capsys):
    assert doctor.main(["deep=true"]) == 2
    assert "try: unetseg doctor" in capsys.readouterr().err
