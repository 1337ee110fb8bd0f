"""The Parquet and Arrow files of a data set of the Hub, or of one that lies on this machine in its form.

root, files = find_files("OWNER/NAME:CONFIG")     # or a file or folder here, which comes first
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.data.listing import holds
from finetune.data.places import HUB
from finetune.errors import DataError, did_you_mean
from finetune.hub import hub_is_reachable
from finetune.types import Event, OnEvent, ignore
from finetune.wording import counted, first_line, listed

KINDS = (".parquet", ".arrow")
CONVERTED = "refs/convert/parquet"  # the branch on which the Hub keeps any data set as Parquet
PARTIAL = "partial-"  # how the folder of a split begins if the Hub has converted only a part of it
NOT_HERE = (
    "On a machine with a network: hf download {name} --repo-type dataset --local-dir FOLDER (add --revision"
    f" {CONVERTED} if it is not Parquet). Then hfds:FOLDER reads it anywhere."
)


def find_files(where: str, *, on_event: OnEvent = ignore) -> tuple[Path, list[Path]]:
    """Return the folder of a data set and its files: those of this machine, else those of the Hub.

    Raises:
        DataError: there are none.
    """
    place = Path(where).expanduser()
    if not holds(place.exists):
        if place.suffix in KINDS:
            raise DataError(f"{HUB}{where}: no such file", hint="hfds:OWNER/NAME is a data set of the Hub.")
        return _fetched(where, on_event)
    if place.is_file():
        files = [place] if place.suffix in KINDS else []
        root = place.parent
    else:
        found = (file for file in place.rglob("*") if file.suffix in KINDS)
        files = sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(place).parts))
        root = place
    if not files:
        raise DataError(
            f"{HUB}{where}: no {' or '.join(KINDS)} file there", hint="For a folder of images leave out hfds:."
        )
    return root, files


def _fetched(where: str, on_event: OnEvent) -> tuple[Path, list[Path]]:
    """Return the folder of a data set of the Hub and its files, fetched unless they are here.

    Raises:
        DataError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name, _, config = where.partition(":")
    try:
        validate_repo_id(name)
        if not hub_is_reachable():
            raise ConnectionError("no answer")
        revision, names = _files_on_hub(name, config)
        parts = [file for file in names if any(part.startswith(PARTIAL) for part in file.split("/"))]
        if parts:
            on_event(Event.warning(f"{name}: the Hub has converted only part of it, which is read ({parts[0]}, ...)"))
        on_event(Event.message(f"{name}: {counted(len(names), 'file')} of the Hub, fetched if not here yet"))
        root = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=names))
    except HFValidationError as error:
        raise DataError(
            f"{HUB}{where}: no such file or folder, and not the name of a data set",
            hint="hfds:OWNER/NAME, hfds:OWNER/NAME:CONFIG or hfds:FOLDER.",
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{HUB}{where}: no such file or folder, and the Hub has no data set {name}",
            hint="A private one needs a login: hf auth login.",
        ) from error
    except DataError:
        raise
    except Exception as error:  # what finds no way has classes of its own in every version of the library
        raise DataError(
            f"{HUB}{where}: no such file or folder, and the Hub cannot be reached: {first_line(error)}",
            hint=NOT_HERE.format(name=name),
        ) from error
    return root, [root / file for file in names]


def _files_on_hub(name: str, config: str) -> tuple[str, list[str]]:
    """Return the branch that has the Parquet files of a data set, and their names.

    Raises:
        DataError: there are none, or several sets of them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in ("main", CONVERTED):
        try:
            names = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        except RevisionNotFoundError:
            continue
        names = sorted(file for file in names if file.endswith(".parquet"))
        if names:
            return revision, _of_config(name, config, names)
    raise DataError(
        f"{HUB}{name}: the Hub has no Parquet files for it", hint="Download its images, and name their folder."
    )


def _of_config(name: str, config: str, names: Sequence[str]) -> list[str]:
    """Return the files of one configuration: those in its folder."""
    configs = sorted({file.split("/")[0] for file in names if "/" in file})
    wanted = config or ("default" if "default" in configs else "")
    if wanted in configs:
        return [file for file in names if file.startswith(f"{wanted}/")]
    if config:
        lacks = f"{HUB}{name} has no configuration {config!r}.{did_you_mean(config, configs)}"
        raise DataError(lacks, hint=f"It has {listed(configs, most=20)}." if configs else f"It has one: {HUB}{name}.")
    if len(configs) > 1:
        hint = f"Name one of {listed(configs, most=20)}: {HUB}{name}:{configs[0]}."
        raise DataError(f"{HUB}{name} has several configurations", hint=hint)
    return list(names)
