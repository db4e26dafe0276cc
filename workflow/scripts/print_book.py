"""Print the book, as one HTML page, to PDF by a headless Chromium."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Milliseconds that the page's own clock may run, for the equations to be set.
_TIME_FOR_SCRIPTS = 300_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("pdf", type=Path)
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        print(f"no browser to print with: install one of {', '.join(_BROWSERS)}", file=sys.stderr)
        return 1
    args.pdf.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch) / "book.pdf"
        command = [browser, "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={scratch}/profile", f"--virtual-time-budget={_TIME_FOR_SCRIPTS}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses to run as root with one
        subprocess.run([*command, f"--print-to-pdf={printed}", args.page.resolve().as_uri()], check=True)
        if not printed.is_file():
            print(f"{browser} printed nothing", file=sys.stderr)
            return 1
        shutil.move(printed, args.pdf)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
