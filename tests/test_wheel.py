"""The wheel carries conf/ and works from any folder, and brings the command `unetseg`."""

import subprocess
import sys
import sysconfig

from conftest import ROOT

from unetseg import __version__


def test_an_installed_wheel_composes_its_config_from_the_root_folder(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "scratch"], check=True)
    python = tmp_path / "scratch/bin/python"
    wheel = next(tmp_path.glob("*.whl"))
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = next((tmp_path / "scratch").glob("lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # shared with this environment
    code = (
        "import unetseg; from unetseg.options.compose import CONF, compose; from unetseg.options.schema import Train\n"
        "options = compose('train', Train, ['data=synthetic', 'model.skip=none'])\n"
        "print(unetseg.__file__, CONF, options.model.skip)"
    )
    done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{site}/unetseg/__init__.py", f"{site}/unetseg/conf", "none"]
    shown = subprocess.run([tmp_path / "scratch/bin/unetseg", "--version"], cwd="/", capture_output=True, text=True)
    assert shown.stdout == f"unetseg {__version__}\n", shown.stderr
    assert (site / "unetseg/py.typed").is_file()
