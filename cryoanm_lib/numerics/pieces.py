"""Work in pieces: so much at a time that what it needs on the way stays near the processor."""

import torch

#: Bytes that may be in work at a time: about the second-level cache of two cores, and what keeps a GPU busy.
WORKING_SET = {"cpu": 2**21, "elsewhere": 2**28}


def pieces(count: int, bytes_each: int, device: torch.device) -> list[slice]:
    """All of some things in order, as many at a time as the working set holds, and one at least.

    Parameters
    ----------
    count : int
        How many there are.
    bytes_each : int
        What one of them needs on the way.
    device : torch.device
        Where they are.

    Examples
    --------
    >>> pieces(5, bytes_each=2**20, device=torch.device("cpu"))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    allowed = WORKING_SET.get(device.type, WORKING_SET["elsewhere"])
    at_a_time = max(1, allowed // max(1, bytes_each))
    return [slice(start, min(start + at_a_time, count)) for start in range(0, count, at_a_time)]
