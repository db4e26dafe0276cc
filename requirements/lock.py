"""Pin and hash what `make book` and `make test` install, from pyproject.toml: `make lock` runs it, with uv.

The pins hold for every system and for Python 3.11 and newer. A pin stays for as long as pyproject.toml admits
it: `make lock LOCK=--upgrade` renews all of them, `make lock LOCK='--upgrade-package numpy'` one.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"

FILES = {
    "build": "Builds what comes as source: ProDy, connection_pool and this library. Installed first.",
    "torch": "Torch as a plain package index has it; for Linux that is the CUDA build, with what it needs.",
    "book": "What the library and the book need beside torch.",
    "test": "What the tests need beside the book.",
}
BUILD = {"numpy", "setuptools", "wheel"}
CUDA = re.compile(r"cuda-|nvidia-|triton$")

COMPILE = "pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes"
PLAIN = "--no-header --no-annotate --no-emit-index-url --no-emit-find-links"


def main() -> None:
    options = sys.argv[1:]
    everything = resolved("test", options)
    book = {name_of(pin) for pin in resolved("book", options)}
    for file, purpose in FILES.items():
        pins = [pin for pin in everything if file_of(name_of(pin), book) == file]
        entries = [" \\\n    ".join([pin, *everything[pin]]) for pin in pins]
        write(FOLDER / f"{file}.txt", purpose, entries)
    remind_of_the_cpu_build(next(pin for pin in everything if name_of(pin) == "torch"))
    # An environment has its own setuptools and wheel, and a torch that needs CUDA says which.
    own = {name for name in map(name_of, everything) if CUDA.match(name)} | {"setuptools", "wheel"}
    shared = [pin for pin in everything if name_of(pin) not in own]
    write(ROOT / "constraints.txt", "The versions that the book is built and tested with.", shared)


def resolved(extra: str, options: list[str]) -> dict[str, list[str]]:
    """Pins, with their markers, of what an extra needs, and the hashes of their public files."""
    now = (line for file in FILES for line in (FOLDER / f"{file}.txt").read_text().splitlines())
    with TemporaryDirectory() as folder:
        output = Path(folder, "pins.txt")  # uv keeps to the pins that it finds there
        output.write_text("".join(line.removesuffix(" \\") + "\n" for line in now if line[:1].isalnum()))
        asked = ["--extra", extra, "--output-file", str(output), *options]
        subprocess.run(
            [sys.executable, "-m", "uv", *COMPILE.split(), *PLAIN.split(), *asked], cwd=ROOT, check=True
        )
        entries = re.split(r"\n(?=\w)", output.read_text())
    return {entry.splitlines()[0].removesuffix(" \\"): re.findall(r"--hash=\S+", entry) for entry in entries}


def name_of(pin: str) -> str:
    return pin.partition("==")[0]


def file_of(name: str, book: set[str]) -> str:
    """The file that lists a package."""
    if name in BUILD:
        return "build"
    if name == "torch" or CUDA.match(name):
        return "torch"
    return "book" if name in book else "test"


def remind_of_the_cpu_build(torch: str) -> None:
    """The one list that is kept by hand, as no public index has what it lists."""
    path = FOLDER / "torch_cpu.txt"
    if f"{torch.split(' ')[0]}+cpu" not in path.read_text():
        print(f"{path} does not list {torch}: put it there, with the hashes that PyTorch's index shows")


def write(path: Path, purpose: str, entries: list[str]) -> None:
    path.write_text("\n".join([f"# {purpose}", "# Written by `make lock`; do not edit.", *entries, ""]))


if __name__ == "__main__":
    main()
