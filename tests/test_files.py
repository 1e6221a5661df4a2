"""Files appear whole, and no link leads out of a folder."""

import os

import pytest

from unetseg.errors import UserError
from unetseg.files import append_rows, drafted, free_path, refuse_links, write_text


@pytest.fixture
def victim(tmp_path):
    """A file outside of the folder that is written to."""
    path = tmp_path / "victim.txt"
    path.write_text("precious")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder/deep").mkdir(parents=True)
    return tmp_path / "folder"


@pytest.mark.parametrize("name", ["report.md", ".report.md.tmp"])
def test_a_link_in_the_place_of_a_file_or_its_draft_is_replaced(folder, victim, name):
    (folder / name).symlink_to(victim)
    write_text(folder / "report.md", "mine")
    assert victim.read_text() == "precious"
    assert (folder / "report.md").read_text() == "mine"
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["report.md"]


def test_what_lay_there_stays_where_writing_breaks_off(folder):
    write_text(folder / "a.txt", "before")

    def half() -> None:
        with drafted(folder / "a.txt") as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert (folder / "a.txt").read_text() == "before"


def test_rows_are_not_appended_through_a_link_or_into_a_pipe(folder, victim):
    (folder / "link.csv").symlink_to(victim)
    os.mkfifo(folder / "pipe.csv")
    for name in ("link.csv", "pipe.csv"):
        with pytest.raises(UserError, match=f"{name} is a link, a pipe or a device"):
            append_rows(folder / name, ["a"], [[1]])
    assert victim.read_text() == "precious"


def test_links_within_a_folder_are_let_be_and_those_out_of_it_are_not(folder, victim):
    (folder / "a.txt").write_text("mine")
    (folder / "deep/link").symlink_to("../a.txt")
    refuse_links(folder)
    (folder / "deep/out").symlink_to(victim)
    with pytest.raises(UserError, match="deep/out is a link"):
        refuse_links(folder)
    refuse_links(folder, but_for=("deep",))


@pytest.mark.parametrize("kind", ["circle", "nowhere", "pipe"])
def test_what_leads_nowhere_is_refused(folder, kind):
    path = folder / "odd"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to({"circle": "odd", "nowhere": "/nowhere/at/all"}[kind])
    with pytest.raises(UserError, match="odd is a link, a pipe or a device"):
        refuse_links(folder)


def test_a_free_path_is_beside_what_is_there_and_beside_links_to_nothing(tmp_path):
    assert free_path(tmp_path / "a.page.png") == tmp_path / "a.page.png"
    (tmp_path / "a.page.png").touch()
    (tmp_path / "a.page_2.png").symlink_to(tmp_path / "nothing")
    assert free_path(tmp_path / "a.page.png") == tmp_path / "a.page_3.png"
