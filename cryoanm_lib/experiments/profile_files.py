"""Profiles as files: where they are, and how one is laid over another, before anything in them is checked."""

from pathlib import Path

import yaml

from cryoanm_lib.errors import ConfigurationError

PROFILES = ("smoke", "laptop", "full", "paper")

#: The profiles that others may be based on; they stand on their own.
BASES = ("laptop",)

#: Keys of a file that are worked off here: the profile below, and a place for YAML anchors.
ONLY_IN_FILES = ("based_on", "defaults")


def config_folder() -> Path:
    """The repository's `config/`, or the copy of it that an installed library carries."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "config"
    return beside if (beside / "laptop.yaml").is_file() else package / "config"


def read_profile(path: Path) -> dict:
    """The tables of a profile, laid over those of the one that it is based on.

    Raises
    ------
    ConfigurationError
        If the file is not a YAML table, or is based on what does not exist.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a 30th of February
        raise ConfigurationError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path.name} holds {type(content).__name__}, not a table of keys")
    base, _ = (content.pop(key, None) for key in ONLY_IN_FILES)
    if base is None:
        return content
    if base not in BASES or path.resolve() == (config_folder() / f"{base}.yaml").resolve():
        raise ConfigurationError(
            f"{path.name}: based_on = {base!r} is not usable: choose from {', '.join(BASES)}"
        )
    return _laid_over(read_profile(config_folder() / f"{base}.yaml"), content)


def _laid_over(below: dict, above: dict) -> dict:
    """Two nested tables as one; where both have a value, the one above counts."""
    both = [key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)]
    return below | above | {key: _laid_over(below[key], above[key]) for key in both}


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one table, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)
