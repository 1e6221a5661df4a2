"""What comes from the Hugging Face hub: data sets, opened by the library `datasets`, and folders of models.

No code of a data set is ever run: the library has had none since version 4. Of a model two files are read, as data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from unetseg.errors import UserError, first_line
from unetseg.files import user_cache

HUB = "https://huggingface.co"
TIMEOUT = 3.0
"""Seconds that a host has to answer."""
VERSION = 1
"""Of how a data set's pictures are kept."""
INFO = "info.json"
"""In the folder of a data set's pictures: the names of its classes, if it has any, and what the user is told."""
MASK_WORDS = {"mask", "label", "annotation", "segmentation", "seg", "target", "gt", "truth", "trimap"}
"""Words in the names of columns of masks, without the s of many."""


PREFIX = "hf:"
"""Before the address of a model on the hub."""
MODEL_FILES = ("config.json", "model.safetensors")
"""The files of a folder of `unetseg.save_pretrained` that are read."""
ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
ADDRESSES = "hf:USER/NAME, or hf:USER/NAME@REVISION (a branch, tag or commit)"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and which of its columns are used.

    Examples:
        >>> Source("owner/name").local
        False
    """

    root: str
    """A name on the hub, or a local folder."""
    config: str | None = None
    """The configuration, of a data set that has several."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    image: str | None = None
    """The column of the pictures; None: found by the columns' types and names."""
    mask: str | None = None
    group: str | None = None
    """The column of what pictures belong together, if any."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Source:
        """Return the source that the data section of a run's options names."""
        return cls(data["root"], **{key: data.get(key) for key in ("config", "revision", "image", "mask", "group")})

    @property
    def local(self) -> bool:
        return Path(self.root).is_dir()

    @property
    def folder(self) -> Path:
        """Return the folder of its pictures; its name changes with the files of a local data set."""
        key = [VERSION, *astuple(self)]
        if self.local:
            root = Path(self.root).resolve()
            states = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_ctime_ns) for p in root.rglob("*")]
            key += [str(root), *sorted(states)]
        return user_cache() / "huggingface" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def check(self) -> None:
        """Raise a UserError where its pictures are not there yet, and can't be had without the library or a network."""
        if self.folder.exists():
            return
        if find_spec("datasets") is None:
            raise UserError(
                "data=hf needs the library datasets, which is not installed", advice="pip install 'unetseg[hf]'"
            )
        if self.local or (hub_cache() / f"datasets--{self.root.replace('/', '--')}").is_dir():
            return
        offline = hub_is_offline()
        if offline or not answers(os.environ.get("HF_ENDPOINT", HUB)):
            raise UserError(
                f"data.root={self.root} is no folder, and can't be downloaded "
                f"({'HF_HUB_OFFLINE is set' if offline else 'no network'})",
                accepted="the name of a data set on the Hugging Face hub, with a network, or a local folder of one",
                advice="data.root=FOLDER of its files, downloaded elsewhere",
            )

    def open(self) -> dict[str, Any]:
        """Return its splits, each a `datasets.Dataset`, by their names.

        Raises:
            UserError: the library, the network or the data set isn't there, or it can't be opened.
        """
        self.check()
        import datasets

        saved = self.local and any((Path(self.root) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        try:
            if saved:
                opened = datasets.load_from_disk(self.root)
            else:
                opened = datasets.load_dataset(self.root, self.config, revision=self.revision)
        except Exception as error:  # the library and the hub's client raise many kinds of errors
            raise UserError(
                f"data.root={self.root} can't be opened: {first_line(error)}",
                accepted="a data set on the Hugging Face hub, or a folder of Parquet, Arrow or pictures with metadata",
                advice="data.config=NAME where it has several, data.revision=..., or another data.root",
            ) from None
        return dict(opened) if isinstance(opened, dict) else {"train": opened}

    def columns(self, features: Mapping[str, Any]) -> tuple[str, str]:
        """Return the columns of the pictures and of their masks.

        Raises:
            UserError: a column isn't there, or the types and names don't tell it.
        """
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        pictures = [name for name, kind in kinds.items() if kind == "Image"]
        masks = [name for name, feature in features.items() if name in pictures or _is_plane(feature)]
        named = [
            name for name in masks if {word.rstrip("s") for word in re.split(r"[^a-z]+", name.lower())} & MASK_WORDS
        ]
        mask = self.mask or _only(named) or _only([name for name in masks if name not in (self.image, *pictures)])
        image = (
            self.image
            or _only([name for name in pictures if name != mask])
            or _only([name for name in pictures if name in ("image", "img", "picture")])
        )
        mask = mask or _only([name for name in masks if name != image])
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        for option, column in (("image", image), ("mask", mask)):
            if column not in features or (option == "image" and column not in pictures):
                given = getattr(self, option)
                problem = f"data.{option}={given} is no column for it" if given else f"no column is surely the {option}"
                raise UserError(
                    f"{problem} in {self.root}",
                    accepted=f"one of its columns: {listed}",
                    advice=f"data.{option}={next(iter(pictures if option == 'image' else masks), 'COLUMN')}",
                )
        assert image is not None
        assert mask is not None
        return image, mask

    def class_names(self) -> list[str] | None:
        """Return the names of the mask's values 0, 1, ... by the data set's own words; None if it has none."""
        file = self.folder / INFO
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))["classes"]
        features = next(iter(self.open().values())).features
        return names_in(features[self.columns(features)[1]])


def fetch_model(address: str) -> Path:
    """Return the local folder of a model on the hub, downloaded where it isn't yet.

    Args:
        address: hf:USER/NAME or hf:USER/NAME@REVISION.

    Raises:
        UserError: it is no such address, or can't be downloaded.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} is no address of a model", accepted=ADDRESSES)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=[*MODEL_FILES]))
    except Exception as error:  # the hub's client raises many kinds of errors
        offline = "HF_HUB_OFFLINE is set, and it has not been downloaded before"
        raise UserError(
            f"{address} can't be downloaded: {offline if hub_is_offline() else first_line(error)}",
            accepted=f"{ADDRESSES} of what unetseg.save_pretrained wrote, with a network",
            advice="the path of its folder, downloaded elsewhere",
        ) from None


def is_model_folder(path: Path) -> bool:
    """Return whether a folder has the files of one that `unetseg.save_pretrained` wrote."""
    return all((path / name).is_file() for name in MODEL_FILES)


def names_in(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel in a column of masks, which are lists of rows; None if there is none."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None


def _is_plane(feature: Any) -> bool:
    """Return whether a column holds whole numbers in rows and columns."""
    if type(feature).__name__ == "Array2D":
        return True
    depth = 0
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature, depth = (feature[0] if isinstance(feature, list) else feature.feature), depth + 1
    return depth == 2 and ("int" in str(getattr(feature, "dtype", "")))


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def hub_cache() -> Path:
    """Return the folder that downloaded weights and data sets are kept in."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def hub_is_offline() -> bool:
    """Return whether the environment forbids to ask huggingface.co."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def answers(address: str) -> bool:
    """Return whether a host answers, through the environment's proxies if there are any."""
    try:
        urlopen(Request(address, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
