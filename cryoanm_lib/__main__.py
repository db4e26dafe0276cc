"""`python -m cryoanm_lib`: see `cryoanm_lib.commands.main`."""

import sys

from cryoanm_lib.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
