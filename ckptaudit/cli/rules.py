"""``ckptaudit rules``."""

from __future__ import annotations

import click

from ckptaudit.cli.answers import GOOD, NONE
from ckptaudit.cli.outputs import format_option, show, write_stdout


@click.command()
@click.argument("rule_id", required=False, metavar="[ID]")
@format_option("text", "json")
@click.pass_context
def rules(ctx: click.Context, rule_id: str | None, format_: str) -> None:
    """List the rules, or explain the one called ID: why it matters, and what to do."""
    from ckptaudit.policy import RULES
    from ckptaudit.report.rules import rule_text, rules_json, rules_text

    if rule_id is None:
        chosen = list(RULES.values())
        text = rules_text(chosen)
    elif rule := RULES.get(rule_id.upper()):
        chosen = [rule]
        text = rule_text(rule)
    else:
        show(f"ckptaudit: there is no rule {rule_id}; `ckptaudit rules` lists them")
        ctx.exit(NONE)
    if not write_stdout(rules_json(chosen) if format_ == "json" else text, format_):
        ctx.exit(NONE)
    ctx.exit(GOOD)
