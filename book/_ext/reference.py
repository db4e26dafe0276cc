"""Pages made from the library: the keys of a profile from their schema, the API from docstrings.

A page says where by a comment: `<!-- configuration keys -->`, or `<!-- api: molecule -->`, or
`<!-- counted -->` for what the long tests have counted. And `<!-- launch: notebooks/01_anm -->` becomes
buttons, if the repository's address is in _config.yml or the clone's origin is on GitHub.
"""

import importlib
import json
import pkgutil
import re
from pathlib import Path

from cryoanm_lib.experiments.profile import Profile
from cryoanm_lib.io.provenance import origin

_COUNTS = Path(__file__).parents[2] / "tests" / "counts.json"
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def setup(app):
    app.connect("config-inited", _find_repository, priority=400)  # before the theme reads its options
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-docstring", _as_text, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _find_repository(app, config):
    """Without an address there is nothing to launch, and no repository to lead to."""
    options = config.html_theme_options
    options["repository_url"] = options.get("repository_url") or origin()
    options["use_repository_button"] = bool(options["repository_url"])
    if not options["repository_url"]:
        options["launch_buttons"] = {}


def _fill_in(app, page, source):
    text = source[0]
    text = text.replace("<!-- configuration keys -->", configuration_keys())
    text = text.replace("<!-- counted -->", counted())
    text = re.sub(r"<!-- launch: (\S+) -->", lambda found: launch_buttons(app.config, found[1]), text)
    source[0] = re.sub(r"<!-- api: (\w+) -->", lambda found: api(found[1]), text)


def counted():
    """How many of what the long tests have tried, and on what."""
    rows = ["| what | how many | machine, commit, day |", "| --- | --- | --- |"]
    for of_test in json.loads(_COUNTS.read_text(encoding="utf-8")).values():
        for what, found in of_test.items():
            made = f"{found['machine']}, `{found['commit']}`, {found['date']}"
            rows.append(f"| {what} | {_number(found['number'])} | {made} |")
    return "\n".join(rows)


def _number(value):
    """Counts with commas, shares to two digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


def launch_buttons(config, page):
    """Links that open a notebook in Binder and in Colab, or why there are none."""
    options = config.html_theme_options
    if not options["repository_url"]:
        return "(This book was built from a copy whose address is not known, so it has no launch buttons.)"
    branch, launch = options["repository_branch"], options["launch_buttons"]
    repository = options["repository_url"].removeprefix("https://github.com/")
    addresses = {
        "Binder": f"{launch['binderhub_url']}/v2/gh/{repository}/{branch}?urlpath=lab/tree/{page}.ipynb",
        "Colab": f"{launch['colab_url']}/github/{repository}/blob/{branch}/{page}.ipynb",
    }
    return "\n".join(
        f"```{{button-link}} {address}\n:color: primary\n:shadow:\nOpen in {name}\n```"
        for name, address in addresses.items()
    )


def api(package):
    """Sections of the public modules of a package, each filled by autodoc."""
    folder = importlib.import_module(f"cryoanm_lib.{package}").__path__
    modules = [module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_")]
    return "\n\n".join(
        f"### `{name}`\n\n```{{eval-rst}}\n.. automodule:: cryoanm_lib.{package}.{name}\n   :members:\n```"
        for name in modules
    )


def _as_text(app, what, name, thing, options, lines):
    """A star is a star and a bar is a bar, outside of backticks and examples."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            pieces = line.split("`")
            pieces[::2] = [re.sub(r"[*|]", r"\\\g<0>", piece) for piece in pieces[::2]]
            lines[number] = "`".join(pieces)


def configuration_keys():
    """A table for each part of a profile: key, what it may be, default, meaning."""
    schema = Profile.model_json_schema()
    parts, seen = [("A profile", schema)], set()
    tables = []
    while parts:
        title, part = parts.pop(0)
        rows = ["| key | may be | default | is |", "| --- | --- | --- | --- |"]
        for key, field in part["properties"].items():
            section = _section_of(field)
            if section and section not in seen:
                seen.add(section)
                parts.append((_title(key, field), schema["$defs"][section]))
            default = "" if section else _default(key, field, part)
            is_ = field.get("description", "see below")
            rows.append(f"| `{key}` | {_kind(field)} | {default} | {is_} |")
        says = part["description"].partition("\n")[0]
        tables.append("\n".join([f"## {title}", "", says, "", *rows]))
    return "\n\n".join(tables)


def _title(key, field):
    """What a part is called, with a key of the reader's own where there are several."""
    if "patternProperties" in field:
        return f"`{key}.<name>`"
    return f"`{key}`" if field.get("type") != "array" else f"Each of `{key}`"


def _section_of(field):
    """Name of the part that a field holds, alone or by name or in a list; none for a value."""
    named = field.get("patternProperties", {}).values()
    for inner in (field, *field.get("anyOf", ()), *named, field.get("items", {})):
        if "$ref" in inner:
            return inner["$ref"].rpartition("/")[2]
    return None


def _kind(field):
    """What a field may hold, in words."""
    if "anyOf" in field:
        return " or ".join(_kind(way) for way in field["anyOf"] if way.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field or "patternProperties" in field:
        return "table"
    if field["type"] == "object":
        return "table"
    if field["type"] == "array":
        if "prefixItems" in field:
            return f"{len(field['prefixItems'])} of: {_kind(field['prefixItems'][0])}"
        return f"list of: {_kind(field['items'])}"
    bounds = [f"{sign} {field[bound]}" for bound, sign in _BOUNDS.items() if bound in field]
    if "multipleOf" in field:
        bounds.append(f"a multiple of {field['multipleOf']}")
    return " ".join([_KINDS[field["type"]], ", ".join(bounds)]).strip()


def _default(key, field, part):
    """What holds where the key is absent."""
    if key in part.get("required", ()):
        return "required"
    value = field.get("default")
    if value is None or value in ({}, []):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "none"
