"""`finetune doctor`."""

from __future__ import annotations

from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape

EXAMPLES = examples("doctor", "doctor --json")


@with_interrupt
def doctor(json_: JsonOption = False) -> None:
    """Show versions, devices, folders, and whether the model hub can be reached."""
    with watching(is_quiet=json_):
        from finetune.workflow.doctor import doctor as examine

        facts = examine()
    if json_:
        tables.print_json(facts)
        return
    console = tables.out()
    lines = {"python": facts["python"], "platform": facts["platform"], **facts["packages"], **facts["devices"]}
    console.print(tables.table(["", "value"], list(lines.items()), words=["value"], has_header=False))
    console.print(f"\ncache: {escape(str(facts['cache']))}\nhub cache: {escape(str(facts['hub_cache']))}")
    reached = "reached" if facts["hub_is_reachable"] else "unreachable"
    console.print(f"model hub: {reached}\nbackbone auto: {facts['auto_backbone']}")
    if not facts["hub_is_reachable"]:
        from finetune.backbone.automatic import WAYS_OUT

        console.print(escape(f"Without the hub: {WAYS_OUT}."))
