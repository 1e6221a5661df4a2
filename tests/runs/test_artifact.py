"""A model kept as a W&B artifact; the service itself is stood in for, everything else is the real client's."""

from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from unetseg.errors import UserError
from unetseg.runs import artifact, wandb_run


class Logger(WandbLogger):
    """A W&B logger whose run writes down what it is given."""

    def __init__(self, offline=False, disabled=False):
        self.uploaded = []
        run = SimpleNamespace(id="abc", offline=offline, disabled=disabled)
        run.log_artifact = lambda artifact, aliases: self.uploaded.append((artifact, aliases))
        self.run = run

    @property
    def experiment(self):
        return self.run


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "some.ckpt").write_bytes(b"weights")
    return tmp_path / "some.ckpt"


def test_an_online_run_uploads_its_best_checkpoint(checkpoint):
    logger = Logger()
    wandb_run.log_model([logger], checkpoint)
    ((artifact, aliases),) = logger.uploaded
    assert (artifact.name, artifact.type, aliases) == ("model-abc", "model", ["best"])
    assert set(artifact.manifest.entries) == {"best.ckpt"}


@pytest.mark.parametrize("state", ["offline", "disabled"])
def test_nothing_is_uploaded_where_w_and_b_is_not_online(checkpoint, state):
    logger = Logger(**{state: True})
    wandb_run.log_model([logger], checkpoint)
    assert logger.uploaded == []


def service(monkeypatch, path=None, error=None, size=100, ref=None):
    """Let wandb.Api find an artifact of one file, or fail."""

    class Api:
        def __init__(self, timeout):
            assert timeout <= 30

        def artifact(self, name, type):
            if error:
                raise error
            assert (name, type) == ("me/pets/model-abc:best", "model")
            entries = {path.name: SimpleNamespace(download=lambda: str(path), size=size, ref=ref)}
            return SimpleNamespace(manifest=SimpleNamespace(entries=entries))

    monkeypatch.setattr(wandb, "Api", Api)


def test_an_artifact_is_fetched_by_its_address(monkeypatch, tmp_path):
    service(monkeypatch, tmp_path / "best.ckpt")
    assert artifact.fetch("wandb:me/pets/model-abc:best") == tmp_path / "best.ckpt"


def test_an_artifact_without_a_checkpoint_is_refused(monkeypatch, tmp_path):
    service(monkeypatch, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"holds no best\.ckpt"):
        artifact.fetch("wandb:me/pets/model-abc:best")


@pytest.mark.parametrize("entry", [{"size": 2**40}, {"size": None}, {"ref": "file:///etc/passwd"}])
def test_a_file_that_would_fill_the_disk_or_lies_elsewhere_is_not_downloaded(monkeypatch, tmp_path, entry):
    service(monkeypatch, tmp_path / "best.ckpt", **entry)
    with pytest.raises(UserError, match=r"holds a (link to )?best\.ckpt (elsewhere|of more than 4 GiB)"):
        artifact.fetch("wandb:me/pets/model-abc:best")


@pytest.mark.parametrize("error", [wandb.errors.CommError("no such project"), ValueError("bad name")])
def test_what_the_service_refuses_is_told_with_the_way_on(monkeypatch, error):
    service(monkeypatch, error=error)
    with pytest.raises(UserError, match=rf"{error}(.|\n)*wandb:ENTITY/PROJECT/NAME:ALIAS"):
        artifact.fetch("wandb:me/pets/model-abc:best")


def test_load_takes_the_address_of_an_artifact(monkeypatch, tmp_path):
    import unetseg

    (tmp_path / "best.ckpt").write_bytes(b"no checkpoint")
    service(monkeypatch, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt can't be loaded"):
        unetseg.load("wandb:me/pets/model-abc:best")
