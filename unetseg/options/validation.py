"""Validated options, or one message on everything that is wrong: the problem, what is accepted, what to try."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from unetseg.errors import UserError
from unetseg.names import nearest_first
from unetseg.options.messages import format_value
from unetseg.options.schema import DATA, Section
from unetseg.options.trainer import trainer_arguments

Schema = TypeVar("Schema", bound=Section)


def validate(schema: type[Schema], options: dict[str, Any]) -> Schema:
    """Return `options` as a `schema`, or raise a UserError that lists everything that is wrong."""
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        raise UserError("\n".join(str(_explain(schema, options, entry)) for entry in error.errors())) from None


def unknown_option(schema: type[Section], options: dict[str, Any], key: str) -> UserError:
    """Return the error for a key that no option has."""
    section, _, name = key.rpartition(".")
    known = list(describe(schema, options))
    siblings = nearest_first(key, [name for name in known if name.rpartition(".")[0] == section] or known)
    others = [data for data, fields in DATA.items() if section == "data" and name in fields.model_fields]
    known_elsewhere = f" of data={options['data']['name']}, but of data={', '.join(map(str, others))}" if others else ""
    return UserError(
        f"{key} is not an option{known_elsewhere}", accepted=", ".join(siblings[:8]), advice=f"{siblings[0]}=..."
    )


def describe(schema: type[Section], options: dict[str, Any]) -> dict[str, str]:
    """Return the description of every option by its dotted key; `options` names the data set, whose own are listed."""
    lines: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        section = DATA.get(options.get("data", {}).get("name")) if name == "data" else field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            lines |= {f"{name}.{key}": text for key, text in describe(section, {}).items()}
        elif name == "trainer":
            lines |= {f"trainer.{argument}": "as in Lightning's Trainer" for argument in trainer_arguments()}
        else:
            lines[name] = field.description or ""
    return lines


def _explain(schema: type[Section], options: dict[str, Any], error: Any) -> UserError:
    """Return the error for one entry of pydantic's ValidationError."""
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["data"] and len(path) > 1:
        del path[1]  # pydantic names the chosen member of the union there
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return unknown_option(schema, options, key)
    context = error.get("ctx", {})
    accepted = context.get("accepted") or error["msg"].removeprefix("Input should be ").removeprefix(
        "a valid "
    ).replace("'", "")
    if error["type"] in ("missing", "missing_argument"):
        accepted = describe(schema, options).get(key, "a value")
        return UserError(f"{key} is not given", accepted=accepted, advice=f"{key}=...")
    advice = context.get("advice") or "--help"
    if context.get("problem"):
        return UserError(context["problem"], accepted=accepted, advice=advice)
    value = error["input"]
    problem = key if isinstance(value, dict) or not key else f"{key}={format_value(value)} is not accepted"
    is_setting = "=" in advice or advice.startswith("--") or not key
    return UserError(
        problem or "these options don't go together",
        accepted=accepted,
        advice=advice if is_setting else f"{key}={advice}",
    )
