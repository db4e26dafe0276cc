"""What a benchmark found: one row of the table."""

import statistics
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """A figure with its spread, beside what it is to reach.

    Attributes
    ----------
    name : str
        What is compared.
    value, low, high : float
        Median over rounds, and the middle four fifths of them.
    unit : str
        "×" where it is a ratio of times.
    target : float
        What is asked.
    at_most : bool
        Whether less is better.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    target: float
    at_most: bool = False

    @classmethod
    def of(cls, name: str, values: list[float], unit: str, target: float, at_most: bool = False) -> "Row":
        """From the figures of all rounds."""
        tenths = (
            statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 2
        )
        return cls(name, statistics.median(values), tenths[0], tenths[-1], unit, target, at_most)

    @property
    def reached(self) -> bool:
        """Whether the median is as good as asked."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def record(self) -> dict:
        """For `bench.json`."""
        return asdict(self) | {"reached": self.reached}

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        spread = f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}) {self.unit}"
        return (
            f"{self.name}: {spread}, asked {sign} {self.target:g} {'reached' if self.reached else 'MISSED'}"
        )
