"""Our part of a card, put into an existing card: the rest of it stays, to the byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from saft_hf.errors import SAFTInputError

# huggingface_hub parses the YAML and writes it again, which loses comments and quotes: the bytes of others must stay.
_FRONT = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?\n|)---[ \t]*(?:\n|\Z)", re.DOTALL)
_SECTION = re.compile(r"<!-- saft_hf:begin(?P<name>[^\n]*?)-->.*?<!-- saft_hf:end -->\n?", re.DOTALL)
# At the top level of a block mapping a key starts its line; what belongs to it is indented or a dash.
_KEY = re.compile(r"^(?=[^\s#\-\]}])", re.MULTILINE)

_WORDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_SIZES = [(10 ** (3 + power), word) for power, word in enumerate(_WORDS)]
_OF_OTHERS = ("license",)
"""Keys that stay what they are where they are set."""
_LISTS = ("tags", "datasets", "source_datasets", "models")
"""Keys whose values are lists that others add to as well."""


def split_card(text: str) -> tuple[str, str]:
    """Split a card into the YAML of its front matter, without the dashes, and the rest."""
    found = _FRONT.match(text)
    return (found["yaml"], text[found.end() :]) if found else ("", text)


def metadata_of(text: str) -> dict[str, Any]:
    """The metadata of a card.

    Raises:
        SAFTInputError: the YAML cannot be read, or is no mapping.
    """
    try:
        data = yaml.safe_load(split_card(text)[0])
    except yaml.YAMLError as error:
        raise SAFTInputError(
            f"the existing card has front matter that is no YAML ({' '.join(str(error).split())}): fix it"
        ) from error
    if data is not None and not isinstance(data, dict):
        raise SAFTInputError(f"the front matter of the existing card is a {type(data).__name__}: fix it")
    return data or {}


def merge_cards(existing: str | None, ours: str) -> str:
    """Put our sections and our metadata into an existing card.

    A section is what lies between `<!-- saft_hf:begin NAME -->` and `<!-- saft_hf:end -->`. An existing one of that
    name is replaced in its place; a new one comes before the one that follows it in ours, or last. Of the metadata, our
    keys are set: lists of names are added to, `configs` and `dataset_info` are merged by configuration and split,
    everything else keeps its place and bytes.

    Args:
        existing: the card that is there; None or empty where there is none.
        ours: a card of ours.

    Returns:
        The merged card. Merging it again with the same card of ours changes nothing.

    Raises:
        SAFTInputError: the existing front matter cannot be read, is none that `datasets` reads, or describes other
            columns.
    """
    if not existing:
        return ours
    windows = "\r\n" in existing and existing.count("\r\n") == existing.count("\n")
    text = existing.replace("\r\n", "\n") if windows else existing
    front, body = split_card(text)
    before, values = metadata_of(text), metadata_of(ours)
    values = {key: _merged(key, before.get(key), values[key]) for key in values}
    if "size_categories" in values:
        values["size_categories"] = [size_category(values["dataset_info"])]
    new_front = _with_values(front, before, values)
    follower = None
    for section in reversed([*_SECTION.finditer(split_card(ours)[1])]):
        body = _with_section(body, section["name"], section[0], follower)
        follower = section["name"]
    merged = f"---\n{new_front}---\n{body}" if new_front else body
    return merged.replace("\n", "\r\n") if windows else merged


def size_category(dataset_info: Any) -> str:
    """The Hub's word for how many rows there are, in all splits of all configurations of a card's `dataset_info`."""
    rows = sum(split["num_examples"] for info in _as_list(dataset_info) for split in info["splits"])
    below = next((i for i, (limit, _) in enumerate(_SIZES) if rows < limit), len(_SIZES))
    if below == len(_SIZES):
        return f"n>{_SIZES[-1][1]}"
    return f"n<{_SIZES[0][1]}" if below == 0 else f"{_SIZES[below - 1][1]}<n<{_SIZES[below][1]}"


def without_private(card: str) -> str:
    """A card of ours without the sections whose name starts with `private`: for a public repository."""
    return re.sub(
        f"(?:{_SECTION.pattern})\n*",
        lambda found: "" if found["name"].strip().startswith("private") else found[0],
        card,
        flags=re.DOTALL,
    )


def _with_section(body: str, name: str, section: str, follower: str | None) -> str:
    existing = {found["name"]: found for found in _SECTION.finditer(body)}
    if name in existing:
        return body[: existing[name].start()] + section + body[existing[name].end() :]
    if follower in existing:
        at = existing[follower].start()
        return f"{body[:at]}{section}\n{body[at:]}"
    if not body.strip():
        return f"\n{section}"
    gap = "\n" if body.endswith("\n") else "\n\n"
    return f"{body}{gap}{section}"


def _with_values(front: str, before: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The front matter with these keys set; lines of other keys stay as they are, comments too."""
    blocks = _KEY.split(front)
    for key, value in values.items():
        if before.get(key) == value:
            continue
        block = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True)
        at = [i for i, old in enumerate(blocks) if re.match(rf"[\"']?{re.escape(key)}[\"']?[ \t]*:", old)]
        if at:
            blocks[at[0]] = block
        else:
            blocks.append(block)
    text = "".join(block if block.endswith("\n") or not block else f"{block}\n" for block in blocks)
    wanted = {**before, **values}
    try:
        same = yaml.safe_load(text) == (wanted or None)
    except yaml.YAMLError:
        same = False
    # An alias of what was replaced, or a mapping in braces: then it is written again as a whole.
    return text if same else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _merged(key: str, before: Any, ours: Any) -> Any:
    if key in _OF_OTHERS:
        return before or ours
    if key in _LISTS:
        return list(dict.fromkeys([*_as_list(before), *_as_list(ours)]))
    try:
        if key == "configs":
            return _merged_configs(_as_list(before), ours)
        if key == "dataset_info":
            return _merged_infos(_as_list(before), _as_list(ours))
    except (KeyError, TypeError, AttributeError) as error:
        raise SAFTInputError(
            f"`{key}` of the existing card is not what `datasets` reads ({type(error).__name__}: {error}): fix it"
        ) from error
    return ours


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _merged_configs(before: list[Any], ours: list[Any]) -> list[Any]:
    merged = {config["config_name"]: dict(config) for config in before}
    for config in ours:
        known = merged.setdefault(config["config_name"], {"config_name": config["config_name"]})
        files = {entry["split"]: entry for entry in _by_split(known.get("data_files"))}
        files |= {entry["split"]: entry for entry in config["data_files"]}
        known["data_files"] = list(files.values())
    return list(merged.values())


def _by_split(data_files: Any) -> list[Any]:
    """`data_files` of a configuration, whose short forms mean the split `train`."""
    entries = _as_list(data_files)
    if entries and not all(isinstance(entry, dict) for entry in entries):
        return [{"split": "train", "path": entries if len(entries) > 1 else entries[0]}]
    return entries


def _merged_infos(before: list[Any], ours: list[Any]) -> Any:
    merged = {info.get("config_name", "default"): _without_name(info) for info in before}
    for info in ours:
        name = info.get("config_name", "default")
        merged[name] = _merged_info(merged.get(name, {}), _without_name(info), name)
    infos = [{"config_name": name, **info} for name, info in sorted(merged.items())]
    return infos if len(infos) > 1 or infos[0]["config_name"] != "default" else _without_name(infos[0])


def _merged_info(before: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One configuration: `ours` describes one split of it."""
    [split] = ours["splits"]
    splits = {old["name"]: {"num_bytes": 0, **old} for old in before.get("splits") or []}
    others = [old for old in splits if old != split["name"]]
    if others and before.get("features") != ours["features"]:
        raise SAFTInputError(
            f"the rows have other columns than the split {others[0]!r} of the configuration "
            f"{name!r} ({_names(ours)}, there {_names(before)}): push them as another configuration "
            "(`config_name=`), or to another repository."
        )
    replaced = splits.get(split["name"])
    splits[split["name"]] = split
    # What a split takes to download is not noted anywhere: what is replaced is taken for its share of the whole.
    download = before.get("download_size") or 0
    if replaced != split:
        share = replaced["num_bytes"] / max(before.get("dataset_size") or 0, 1) if replaced else 0.0
        download = round(download * (1 - min(share, 1.0))) + ours["download_size"]
    sizes = {"download_size": download, "dataset_size": sum(entry["num_bytes"] for entry in splits.values())}
    return {**before, **ours, "splits": list(splits.values()), **sizes}


def _names(info: Mapping[str, Any]) -> list[str]:
    return [feature.get("name", "?") for feature in info.get("features", [])]


def _without_name(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != "config_name"}
