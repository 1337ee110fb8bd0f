"""A data set written as tar shards, which a disk or an object store reads from one end to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from finetune import recipe as recipes
from finetune.arguments import Settings, typed
from finetune.data.hub_rows import as_shards
from finetune.data.places import HUB, check_outside
from finetune.data.shard_writer import INTO_A_NEW, Shards, write_shards
from finetune.data.shards import Columns
from finetune.errors import RecipeError
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import data_notes, list_data, problem_notes
from finetune.settings import Recipe
from finetune.types import Event, OnEvent, ignore
from finetune.whole import check_vacant

USUAL = 10**9  # bytes of a shard
LEAST = 10**4


@typed
def shard(
    data: str | Path | None = None,
    *,
    out: str | Path,
    size: int = USUAL,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Shards:
    """Write a data set as WebDataset shards of at most `size` bytes into a new folder, whole or not at all.

    Files are copied byte for byte, with their classes, splits and groups; `run` and the other functions read them
    as `wds:FOLDER`. For a data set of the Hub (`hfds:OWNER/NAME`, `hfds:FOLDER`) the images are those that its rows
    hold. Rows that are left out because they lack an image or a label are reported.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    if size < LEAST:
        raise RecipeError(f"size = {size}: a shard has at least {LEAST:,} bytes", hint="1GB is usual.")
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    place = Path(out).expanduser()
    check_vacant(place, hint=INTO_A_NEW)
    with _as_images(chosen, place, on_event) as source:
        check_outside(place, source.data.path)
        manifest = list_data(source, is_to_train=False, on_event=on_event)
        for note in (*data_notes(manifest), *problem_notes(manifest)):
            on_event(Event.warning(note))
        if len(manifest.classes) == 1:
            on_event(Event.warning(f"all images are of one class, {manifest.classes[0]!r}: a run needs two"))
        return write_shards(manifest, place, size=size, on_event=on_event)


@contextmanager
def _as_images(recipe: Recipe, out: Path, on_event: OnEvent) -> Iterator[Recipe]:
    """Yield a recipe whose data are images: itself, or one of shards that the rows of its data set were laid out as."""
    data = recipe.data
    if not data.path.startswith(HUB):
        yield recipe
        return
    columns = Columns(data.label_column, data.split_column, data.group_by)
    with as_shards(data.path, data.image_column, columns, near=out, on_event=on_event) as path:
        yield recipes.update(recipe, {"data.path": path})
