"""Refuses a bad config before any job starts, naming the key and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema

from ldmscale.config.check_family import family_rules, is_dit
from ldmscale.config.check_tree import LARGEST, shown, unfit
from ldmscale.config.published import CLIP_VOCABULARY
from ldmscale.config.study import DISTILLED, DOWNSTREAM
from ldmscale.errors import UserError

# What a figure's cells must be of, where not text-to-image.
FIGURE_TASKS = {
    "fig24": "interpolation",
    **dict.fromkeys(("fig04", "fig05", "fig12", "fig17", "fig18"), "superres"),
    **dict.fromkeys(("fig06", "dreambooth"), "dreambooth"),
    **dict.fromkeys(("fig13", "fig20"), "codi"),
    "fig19": "guided",
}
# The figures that read a setting which others would pass over in silence.
FIGURE_SETTINGS = {
    "metric": ("fig08", "fig09", "fig11", "fig13", "families"),
    "axis": ("fig09", "fig11", "fig12", "fig13", "families"),
}
# The settings that figures cannot be drawn without, beside `experiment`, which all but four need.
WITHOUT_EXPERIMENT = ("fig02", "latency", "fits", "validation")
FIGURE_NEEDS = {
    **dict.fromkeys(("fig01", "fig14", "fig15", "fig16"), ("prompts",)),
    **dict.fromkeys(("fig05", "fig18"), ("patches",)),
    **dict.fromkeys(("fig10", "fig21", "fig22", "fig23"), ("rows",)),
    **dict.fromkeys(("fig11", "fig19"), ("baseline",)),
    "fig06": ("prompt", "subjects"),
    "fig07": ("prompt",),
    "fig13": ("baseline", "steps"),
    "fig20": ("baseline", "equal", "model", "small", "cost", "cfg", "prompts"),
    "fig24": ("pair",),
}
# Of which experiment a figure shows cells of the given `steps`; fig11's is a limit.
STEPS_OF = {**dict.fromkeys(("fig05", "fig07", "fig17", "fig18"), "experiment"), "fig13": "baseline"}


def check(config: dict, schema_path: str | Path) -> None:
    """Check ``config`` against the JSON schema and against what a schema cannot say.

    Raises:
        UserError: one sentence for every problem found, each naming its key.
    """
    schema = json.loads(Path(schema_path).read_text())
    # Each takes for granted what those before it check.
    problems = list(unfit(config))
    problems = problems or [_sentence(e) for e in _Validator(schema).iter_errors(config)]
    problems = problems or list(_rules(config))
    if problems:
        raise UserError("config: " + "\nconfig: ".join(dict.fromkeys(map(shown, problems))))


def _whole(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _finite(_: object, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # false of nan


def _pattern(validator, pattern: str, value: object, _: dict) -> Iterator[jsonschema.ValidationError]:
    """As JSON Schema has it: Python's ``$`` would also stand before a line break at the end."""
    if validator.is_type(value, "string") and not re.search(pattern.removesuffix("$") + r"\Z", value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


# JSON Schema calls 2.0 an integer and YAML's .nan a number; neither counts steps.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"pattern": _pattern},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _whole, "number": _finite}),
)


def _sentence(error: jsonschema.ValidationError) -> str:
    key = error.json_path.removeprefix("$.").removeprefix("$") or "the top level"
    if error.validator == "anyOf":
        return _alternatives(error, key)
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known))
        return f"unknown key {unknown[0]!r} at {key}; known keys there: {', '.join(known)}"
    if error.validator == "propertyNames" or "propertyNames" in error.absolute_schema_path:
        return f"unknown name {error.instance!r} at {key}; {error.message}"
    if error.validator == "required":
        return f"{key} lacks the key {error.message.removesuffix(' is a required property')}"
    if error.validator == "oneOf":
        return f"{key} needs exactly one of: {', '.join(r['required'][0] for r in error.validator_value)}"
    if error.validator == "pattern" and "examples" in error.schema:
        return f"{key} is {error.instance!r}, but must be like {error.schema['examples'][0]}"
    if error.validator == "minItems":
        return f"{key} must not be empty"
    if error.validator == "type":
        expected = (
            error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        )
        hint = ""
        if isinstance(error.instance, str) and expected in ("number", "integer") and _is_number(error.instance):
            hint = " (that is text: write numbers without quotes, and 1e-4 as 1.0e-4)"
        return f"{key} is {error.instance!r}, but must be of type {expected}{hint}"
    return f"{key}: {error.message}"


def _alternatives(error: jsonschema.ValidationError, key: str) -> str:
    """Of the alternatives, the one whose type fits says what is wrong."""
    branches: dict[int, list[jsonschema.ValidationError]] = {}
    for nested in error.context:
        branches.setdefault(nested.schema_path[0], []).append(nested)
    for other in (("type", "const", "enum"), ("type", "const")):  # a list of names fits a name alone
        for errors in branches.values():
            if not any(e.validator in other and not e.relative_path for e in errors):
                return _sentence(errors[0])
    kinds = [e.validator_value for e in error.context if not e.relative_path and e.validator in ("type", "const")]
    return f"{key} is {error.instance!r}, but must be {' or '.join(map(str, kinds))}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rules(config: dict) -> Iterator[str]:
    yield from family_rules(config)
    yield from _devices(config)
    yield from _encoders(config)
    yield from _experiments(config)
    yield from _interpolation(config)
    yield from _downstream(config)
    yield from _distilled(config)
    yield from _figures(config)
    if config["validation"]["levels"] > config["diffusion"]["steps"]:
        yield (
            f"validation.levels is {config['validation']['levels']}, but must be at most diffusion.steps "
            f"({config['diffusion']['steps']})"
        )
    if config["data"]["counts"]["train"] is None and config["data"]["train"]["source"] == "scenes":
        yield "data.counts.train must be a number where data.train.source is scenes, which never end"


def _devices(config: dict) -> Iterator[str]:
    for model in config["models"]:
        accumulate = {**config["devices"], **model.get("devices", {})}["accumulate"]
        batch = {**config["pretrain"], **model.get("pretrain", {})}["batch"]
        if batch % accumulate:
            yield (
                f"devices.accumulate of the model '{model['name']}' is {accumulate}, but must divide its batch of "
                f"pretraining ({batch})"
            )


def _encoders(config: dict) -> Iterator[str]:
    size, ae, clip = config["data"]["image_size"], config["autoencoder"], config["clip"]
    factor = 2 ** (len(ae["channel_mult"]) - 1)
    if size % factor:
        yield (
            f"data.image_size is {size}, "
            f"but must be a multiple of {factor} (autoencoder.channel_mult has that many halvings)"
        )
    if any(ae["channels"] * m % ae["norm_groups"] for m in ae["channel_mult"]):
        yield (
            f"autoencoder.channels {ae['channels']} gives widths that "
            f"autoencoder.norm_groups {ae['norm_groups']} does not divide"
        )
    if clip["published"]:
        if not clip["weights"]:
            yield f"clip.published is {clip['published']}, but clip.weights is null: give the path of its weights"
    else:
        if size % clip["patch"]:
            yield f"clip.patch is {clip['patch']}, but must divide data.image_size ({size})"
        for key in ("image_width", "text_width"):
            if clip[key] % clip["heads"]:
                yield f"clip.{key} is {clip[key]}, but must be a multiple of clip.heads ({clip['heads']})"
    for key, section in (("clip", clip), ("text_encoder", config["text_encoder"] or {})):
        if not (published := section.get("published")):
            continue
        if not config["tokenizer"]["files"]:
            yield f"tokenizer.files is null, but {key}.published needs CLIP's published tokenizer: give its folder"
        own = published if isinstance(published, dict) else {}
        for name, standard in CLIP_VOCABULARY.items():
            have, need = config["tokenizer"][name], own.get(name, standard)
            if have != need:
                yield f"tokenizer.{name} is {have}, but {key}.published needs {need}"


def _experiments(config: dict) -> Iterator[str]:
    names = {m["name"] for m in config["models"]}
    if not (config["experiments"].get("headline") or {}).get("scored"):
        yield "experiments.headline must be there and scored: Table 1 and the summary are made from it"
    for experiment, spec in config["experiments"].items():
        if spec is None:
            continue
        for name in [] if spec["models"] == "all" else spec["models"]:
            if name not in names:
                yield (
                    f"experiments.{experiment}.models names '{name}', "
                    f"which is not among models ({', '.join(sorted(names))})"
                )
        for steps in spec.get("steps", []):
            if steps >= config["diffusion"]["steps"]:
                yield (
                    f"experiments.{experiment}.steps has {steps}, "
                    f"but must be under diffusion.steps ({config['diffusion']['steps']})"
                )


def _interpolation(config: dict) -> Iterator[str]:
    section, experiments = config["interpolation"], config["experiments"]
    asking = _asking(config, "interpolation")
    if asking and not section:
        yield f"interpolation is null, but experiments.{asking[0]} has the task interpolation"
    if section and not {0, 1} <= set(section["alphas"]):
        yield f"interpolation.alphas is {section['alphas']}, but must have both ends, 1 and 0"
    for name in asking:
        if not experiments[name]["scored"]:
            yield f"experiments.{name}.scored is false, but an interpolation is drawn to be scored"
    for figure, settings in config["figures"].items():
        if figure == "fig24" and settings and section and settings.get("pair", -1) not in range(len(section["pairs"])):
            yield f"figures.{figure}.pair is {settings.get('pair')}, but must be from 0 to {len(section['pairs']) - 1}"


def _downstream(config: dict) -> Iterator[str]:
    for task in DOWNSTREAM:
        section = config[task]
        for name in (asking := _asking(config, task)):
            spec = config["experiments"][name]
            if not spec["scored"]:
                yield f"experiments.{name}.scored is false, but cells of {task} are drawn to be scored"
            if task == "superres" and spec["cfg"] != [1.0]:
                yield f"experiments.{name}.cfg is {spec['cfg']}, but super-resolution is unguided: it must be [1.0]"
        if asking and not section:
            yield f"{task} is null, but experiments.{asking[0]} has the task {task}"
        if section:
            yield from _finetuning(f"{task}.finetune", section["finetune"])
    if config["superres"]:
        if config["data"]["image_size"] % 4:
            yield f"data.image_size is {config['data']['image_size']}, but super-resolution by 4 needs a multiple of 4"
        if config["superres"]["evaluation_lr"] and not config["superres"]["evaluation"]:
            yield "superres.evaluation_lr is given, but superres.evaluation is not: low resolution needs its originals"
        yield from _superres_figures(config)
    prior = (config["dreambooth"] or {}).get("prior")
    if prior and prior["steps"] >= config["diffusion"]["steps"]:
        yield (
            f"dreambooth.prior.steps is {prior['steps']}, but must be under diffusion.steps "
            f"({config['diffusion']['steps']})"
        )


def _asking(config: dict, task: str) -> list[str]:
    """Names of the experiments of ``task``."""
    return [name for name, spec in config["experiments"].items() if spec and spec.get("task") == task]


def _distilled(config: dict) -> Iterator[str]:
    for task in DISTILLED:
        section, asking = config[task], _asking(config, task)
        if asking and not section:
            yield f"{task} is null, but experiments.{asking[0]} has the task {task}"
        if section and not section["cfg"][0] < section["cfg"][1]:
            yield f"{task}.cfg is {section['cfg']}, but must be the least and the greatest CFG of training"
    if config["codi"]:
        yield from _finetuning("codi.finetune", config["codi"]["finetune"])
        if 0 in config["codi"]["finetune"]["checkpoints"]:
            yield "codi.finetune.checkpoints has 0, but that is the undistilled model: leave it out"
        if not any(config["codi"]["loss"][term] for term in ("consistency", "noise_consistency", "signal")):
            yield "codi.loss has no term: one of consistency, noise_consistency and signal must be above 0"
    students = (config["guided"] or {}).get("students", [])
    if any(after * 2 != before for before, after in zip(students, students[1:], strict=False)):
        yield f"guided.students is {students}, but each must be half of the one before, such as [16, 8, 4]"
    if students and 2 * students[0] > config["diffusion"]["steps"]:
        yield f"guided.students begins at {students[0]}, whose teacher's steps exceed diffusion.steps"


def _superres_figures(config: dict) -> Iterator[str]:
    known = None if config["superres"]["evaluation"] else config["data"]["counts"]["heldout"]
    for figure, settings in config["figures"].items():
        settings = settings or {}
        for patch in settings.get("patches", []):
            if known is not None and patch >= known:
                yield f"figures.{figure} shows patch {patch}, but data.counts.heldout is only {known} (counted from 0)"
        name = settings.get("experiment")
        steps = (config["experiments"].get(name) or {}).get("steps")
        if "split" in settings and steps and not min(steps) <= settings["split"] < max(steps):
            yield f"figures.{figure}.split is {settings['split']}, but must divide experiments.{name}.steps ({steps})"


def _finetuning(where: str, settings: dict) -> Iterator[str]:
    steps = settings["checkpoints"]
    if steps != sorted(steps) or steps[-1] != settings["steps"]:
        yield f"{where}.checkpoints is {steps}, but must ascend and end at steps ({settings['steps']})"
    if settings["warmup"] >= settings["steps"]:
        yield f"{where}.warmup is {settings['warmup']}, but must be under steps ({settings['steps']})"


def _figures(config: dict) -> Iterator[str]:
    names = {m["name"] for m in config["models"]}
    running = {k for k, v in config["experiments"].items() if v is not None}
    for figure, settings in config["figures"].items():
        if settings is None:
            continue
        needed = () if figure in WITHOUT_EXPERIMENT else ("experiment", *FIGURE_NEEDS.get(figure, ()))
        if lost := [key for key in needed if key not in settings]:
            yield f"figures.{figure} lacks the key '{lost[0]}'"
            continue
        yield from _models_of(figure, settings, config)
        for key in ("experiment", "baseline", "equal"):
            if key in settings and settings[key] not in running:
                yield (
                    f"figures.{figure}.{key} is '{settings[key]}', "
                    f"which is not among experiments ({', '.join(sorted(running))})"
                )
        spec = config["experiments"].get(settings.get("experiment"))
        if spec and (task := FIGURE_TASKS.get(figure, "t2i")) != spec.get("task", "t2i"):
            yield f"figures.{figure}.experiment is '{settings['experiment']}', but must be one of the task {task}"
        for key, figures in FIGURE_SETTINGS.items():
            if key in settings and figure not in figures:
                yield f"figures.{figure} has no '{key}': only {', '.join(figures)} have"
        if settings.get("metric") == "fd_dino" and not config["metrics"]["dinov2"]:
            yield f"figures.{figure}.metric is 'fd_dino', but metrics.dinov2 is null: give the path of its weights"
        shown = config["experiments"].get(settings.get(STEPS_OF.get(figure))) or {}
        asked = settings.get("steps", [])
        for steps in asked if isinstance(asked, list) else [asked]:
            if steps not in shown.get("steps", [steps]):
                named = settings[STEPS_OF[figure]]
                yield f"figures.{figure} shows {steps} steps, but experiments.{named}.steps are {shown['steps']}"
        for name in settings.get("subjects", []):
            if name not in (subjects := (config["dreambooth"] or {}).get("subjects", [])):
                yield f"figures.{figure}.subjects names '{name}', which is not among {', '.join(subjects)}"
        for key in {"model", "small"} & set(settings):
            if settings[key] not in names:
                yield f"figures.{figure}.{key} is '{settings[key]}', but models are {', '.join(sorted(names))}"
        for name in settings.get("models", []):
            if name not in names:
                yield f"figures.{figure}.models names '{name}', which is not among models ({', '.join(sorted(names))})"
        rows = settings.get("rows", [])
        prompts = [*settings.get("prompts", []), *(r["prompt"] for r in rows)]
        if "prompt" in settings and figure != "fig06":  # whose prompt is one of its subjects'
            prompts.append(settings["prompt"])
        for prompt in prompts:
            if prompt >= len(config["gallery"]):
                yield (
                    f"figures.{figure} shows prompt {prompt}, "
                    f"but gallery has only {len(config['gallery'])} (counted from 0)"
                )
        costing = settings.get("equal", settings.get("experiment"))
        costs = (config["experiments"].get(costing) or {}).get("costs", [])
        rows = [*rows, *([{"cost": settings["cost"]}] if "cost" in settings else [])]
        for row in rows:
            if row["cost"] not in costs:
                yield (
                    f"figures.{figure} shows cost {row['cost']}, "
                    f"which is not among experiments.{settings['experiment']}.costs ({costs})"
                )


def _models_of(figure: str, settings: dict, config: dict) -> Iterator[str]:
    """What a figure asks of the models themselves."""
    dits = {m["name"]: is_dit(m) for m in config["models"]}
    if figure == "fits" and all("weights" in m for m in config["models"]):
        yield "figures.fits shows training, but no model is trained here: set it to null"
    if figure == "fig02" and all(dits.values()):
        yield "figures.fig02 draws a U-Net, but models has none: set it to null"
    if figure == "families":
        if "experiment" not in settings:
            yield "figures.families lacks the key 'experiment'"
        asked = (config["experiments"].get(settings.get("experiment")) or {}).get("models", [])
        shown = settings.get("models", dits if asked == "all" else asked)
        if len({dits[name] for name in shown if name in dits}) < 2:
            yield "figures.families compares U-Nets with transformers, but its models are of one family: set it to null"
