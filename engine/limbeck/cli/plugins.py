"""`limbeck plugins` and `limbeck plugins show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output
from limbeck.errors import LimbeckError, Problem, Reason

if TYPE_CHECKING:
    from limbeck.plugins import Entry, Registry

KINDS = ("teacher", "generator", "loss", "scheduler")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, everything else on stderr.")


@click.group("plugins", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins, and those that failed with their reason."""
    ctx.obj = as_json
    if ctx.invoked_subcommand is not None:
        return
    from limbeck.plugins import load_plugins

    registry = load_plugins()
    if as_json:
        output.emit_json(_listing(registry))
    else:
        _print_listing(registry)


@command.command("show")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Where a name is used by more than one kind.")
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Show one plugin: who brought it, and each field of its config."""
    from limbeck.plugins import load_plugins

    registry = load_plugins()
    entries = [entry for entry in registry.entries if entry.plugin.name == name and kind in (None, entry.kind)]
    if not entries:
        raise _unknown(registry, name, kind)
    if as_json or ctx.obj:
        output.emit_json([_details(entry) for entry in entries])
        return
    for entry in entries:
        _print_details(entry)


def _unknown(registry: Registry, name: str, kind: str | None) -> LimbeckError:
    from limbeck.errors import nearest

    known = sorted({entry.plugin.name for entry in registry.entries if kind in (None, entry.kind)})
    guess = nearest(name, known)
    hint = (f"did you mean {guess!r}? " if guess else "") + f"known: {', '.join(known) or 'none'}"
    problems = [Problem(f"no {kind or 'plugin'} is called {name!r}", hint=hint)]
    problems += [Problem(f"this plugin could not be used: {failure}") for failure in registry.failures]
    return LimbeckError(Reason.PLUGIN_UNKNOWN, problems=problems)


def _row(entry: Entry) -> dict[str, Any]:
    plugin = entry.plugin
    row = {"name": plugin.name, "kind": entry.kind, "distribution": entry.distribution, "version": entry.version}
    return {**row, "summary": plugin.summary}


def _listing(registry: Registry) -> dict[str, Any]:
    failures = [
        {"entry_point": one.entry_point, "distribution": one.distribution, "version": one.version, "error": one.error}
        for one in registry.failures
    ]
    return {
        "plugins": [_row(entry) for entry in _sorted(registry)],
        "observers": [name for name, _ in registry.observers],
        "failures": failures,
        "clashes": registry.clashes(),
    }


def _sorted(registry: Registry) -> list[Entry]:
    return sorted(registry.entries, key=lambda entry: (KINDS.index(entry.kind), entry.plugin.name, entry.distribution))


def _print_listing(registry: Registry) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = output.console()
    table = Table("name", "kind", "distribution", "summary", box=box.SIMPLE_HEAD, pad_edge=False)
    for entry in _sorted(registry):
        owner = f"{entry.distribution} {entry.version}"
        table.add_row(*(escape(text) for text in (entry.plugin.name, entry.kind, owner, entry.plugin.summary)))
    console.print(table)
    for name, _ in registry.observers:
        console.print(f"observer of events: {escape(name)}")
    for failure in registry.failures:
        console.print(f"[red]failed[/red]: {escape(str(failure))}")
    for clash in registry.clashes():
        console.print(f"[red]clash[/red]: {escape(clash)}; a recipe cannot use it")
    console.print("limbeck plugins show NAME tells what a plugin's config may hold")


def _details(entry: Entry) -> dict[str, Any]:
    from limbeck.interfaces import LossPlugin
    from limbeck.recipe.json_schema import plugin_schema

    kind = {"loss_kind": entry.plugin.kind} if isinstance(entry.plugin, LossPlugin) else {}
    return {**_row(entry), **kind, "fields": _fields(entry), "schema": plugin_schema(entry)}


def _fields(entry: Entry) -> list[dict[str, Any]]:
    from pydantic_core import PydanticUndefined, to_jsonable_python

    from limbeck.recipe.bound import knob_bounds

    knobs = knob_bounds(entry.plugin.config)
    fields = []
    for name, field in entry.plugin.config.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
        value = {} if default is PydanticUndefined else {"default": to_jsonable_python(default, fallback=str)}
        description = field.description or ""
        row = {"name": field.alias or name, "required": field.is_required(), "knob": name in knobs}
        fields.append({**row, **value, "description": description})
    return fields


def _print_details(entry: Entry) -> None:
    import json

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = output.console()
    plugin = entry.plugin
    console.print(f"[bold]{plugin.name}[/bold] ({entry.kind}, {entry.distribution} {entry.version})")
    console.print(escape(plugin.summary))
    table = Table("field", "default", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    for field in _fields(entry):
        default = "required" if field["required"] else json.dumps(field["default"], ensure_ascii=False)
        table.add_row(field["name"], escape(default), escape(field["description"]))
    console.print(table)
