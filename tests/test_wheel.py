"""The wheel carries conf/ and works from any folder."""

import subprocess
import sys
import zipfile

from conftest import ROOT


def test_the_wheel_composes_its_config_from_the_root_folder(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # an installation without dependencies, which are shared
    assert (tmp_path / "site/unetseg/conf/train.yaml").exists()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import unetseg; print(unetseg.__file__)\n"
        "from unetseg import cli; from unetseg.config import Train\n"
        "print(cli.CONF, cli.compose('train', Train, ['data=synthetic', 'model.skip=none']).model.skip)"
    )
    site = str(tmp_path / "site")
    done = subprocess.run([sys.executable, "-P", "-c", code, site], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{site}/unetseg/__init__.py", f"{site}/unetseg/conf", "none"]
