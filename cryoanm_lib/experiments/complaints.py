"""What is wrong with a profile, in words: the key, its value, and what is allowed."""

import re
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cryoanm_lib.settings import Section


def explanation(
    file_name: str, error: ValidationError, root: type[Section], also_allowed: Sequence[str]
) -> str:
    """One line for each problem that was found.

    Parameters
    ----------
    file_name, error : str, ValidationError
        Of the file that was read, and what pydantic says of its content.
    root, also_allowed : type of Section, sequence of str
        The section that the whole file is, and keys that it may have beside those of this section.
    """
    problems = error.errors()
    # A list whose element is wrong is also said to be too short; the element is what matters.
    inner = [p["loc"] for p in problems]
    problems = [
        p for p in problems if not any(q != p["loc"] and q[: len(p["loc"])] == p["loc"] for q in inner)
    ]
    lines = [_line(problem, root, also_allowed) for problem in problems]
    return "\n".join([f"{file_name} is not usable:", *lines])


def _line(problem: ErrorDetails, root: type[Section], also_allowed: Sequence[str]) -> str:
    *parents, _ = problem["loc"] or ("",)
    where = ".".join(str(part) for part in problem["loc"]) or "profile"
    if problem["type"] == "extra_forbidden":
        section = _section_at(root, parents)
        allowed = [*section.model_fields, *(also_allowed if section is root else ())]
        return f"  {where}: unknown key; allowed: {', '.join(sorted(allowed))}"
    if problem["type"] == "missing":
        return f"  {where}: missing; {problem['msg']}"
    value = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    hint = " (YAML wants a point in the number: 1.0e-3)" if _is_text_number(problem["input"]) else ""
    return f"  {where}{value}: {problem['msg']}{hint}"


def _is_text_number(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) is not None


def _section_at(section: type[Section], parents: Sequence[str | int]) -> type[Section]:
    """The section that a path of keys leads to; names of a table and numbers of a list lead nowhere else."""
    for part in parents:
        if part in section.model_fields:
            section = _section_within(section.model_fields[part].annotation) or section
    return section


def _section_within(annotation: object) -> type[Section] | None:
    """The section in an annotation: itself, `Section | None`, `dict[str, Section]`, `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_within(part))), None)


def without_json(content: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dates, bytes and the like, which YAML knows and a profile does not, each with the way to it."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    for name, value in content.items() if isinstance(content, dict) else ():
        here = f"{key}.{name}".lstrip(".")
        if not isinstance(name, (str, int, float, bool)):
            yield here, name
        elif not isinstance(value, (str, int, float, bool, dict, list, type(None))):
            yield here, value
        yield from without_json(value, here)
