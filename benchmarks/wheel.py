"""Run the README and the first page of the docs from a wheel, in an environment without the checkout.

``python benchmarks/wheel.py`` (``make test-wheel``) builds the wheel, installs it without its dependencies
into a new virtual environment that sees those of this Python, and runs the examples in empty folders. Blocks
marked ``text``, such as a training of minutes, are left out. The build needs the module hatchling, or a
network to get it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/index.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def environment(folder: Path, wheel: Path) -> Path:
    """Make a virtual environment with the wheel, in which this Python's other packages can be imported."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(found.stdout.strip())
    # A path alone: .pth files there, such as that of an editable installation, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel], check=True
    )
    return python


def run_page(page: Path, python: Path, folder: Path) -> int:
    """Run the examples of a page in their order, in one process; returns how many ran."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables["PATH"] = f"{python.parent}{os.pathsep}{variables['PATH']}"
    parts = ["import subprocess"]
    for language, text in BLOCK.findall(page.read_text("utf-8")):
        if language == "python":
            parts.append(text)
            continue
        for line in text.strip().splitlines():
            command = shlex.split(line.removeprefix("$ "), comments=True)
            # Commands of other programs install the package, which was done another way.
            if language in ("bash", "console") and command[:1] == ["rismusic"]:
                parts.append(f"print('$ ' + {shlex.join(command)!r}, flush=True)")
                parts[-1] += f"\nsubprocess.run({command!r}, check=True)"
    script = folder / "examples.py"
    script.write_text("\n".join(parts), "utf-8")
    subprocess.run([python, script], cwd=folder, env=variables, check=True)
    return len(parts) - 1


def main() -> None:
    """Build, install, run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        python = environment(folder / "env", wheel)
        for number, name in enumerate(PAGES):
            empty = folder / f"page{number}"
            empty.mkdir()
            place = [str(python), "-c", "import rismusic; print(rismusic.__file__)"]
            imported = subprocess.run(place, cwd=empty, capture_output=True, text=True, check=True).stdout
            if not Path(imported).is_relative_to(folder):
                raise SystemExit(f"rismusic was imported from {imported.strip()}, not from the wheel")
            print(f"{name}: {run_page(ROOT / name, python, empty)} examples ran from {wheel.name}")


if __name__ == "__main__":
    main()
