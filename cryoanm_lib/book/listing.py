"""Programs as they stand in the library, for pages that are about them."""

import inspect
import textwrap
from collections.abc import Callable


def listing(*functions: Callable[..., object]) -> str:
    """The source of functions as a block of Markdown, one below the other.

    Examples
    --------
    >>> print(listing(listing).splitlines()[1])
    def listing(*functions: Callable[..., object]) -> str:
    """
    sources = (textwrap.dedent(inspect.getsource(function)).strip() for function in functions)
    return "```python\n" + "\n\n\n".join(sources) + "\n```"
