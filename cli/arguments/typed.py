"""Python's words in a message become what is typed on the command line: `time_scale=` is `--time-scale`.

    give schedule= (--schedule linear:1000)     give --schedule linear:1000
    give schedule='edm' and prediction='x0'     give --schedule edm and --prediction x0
    contract: time_scale -1.0, expected ..      --time-scale -1.0, expected ..
    nfe=5, this engine has 4, 6                 --nfe 5, this engine has 4, 6

What is in quotes was given by the user and stays.
"""

from __future__ import annotations

import re

# Arguments of the Python functions that commands have options for; the option is the name with - for _, or the second.
NAMES = (
    *("shape", "schedule", "prediction", "input", "time", "output", "time_scale", "time_map", "time_dtype"),
    *("learned_sigma", "sigma_data", "data_range", "guidance", "decoder", "lora", "controlnet"),
    *("nfe", "solver", "grid", "basis", "clip", "t_start", "end", "batch", "precision", "quantise_error"),
    *("calibrate_prompts", "calibrate_conditions", "backend", "device", "target", "threads"),
    *("seeds", "prompt", "negative_prompt", "image", "mask", "strength", "strength_counts"),
    *("budget", "calibration", "held_out", "reference", "solvers", "grids", "bases", "count", "pictures", "features"),
)
OTHERS = {"conditions": "--condition", "out": "--out"}
OPTIONS = {**{name: "--" + name.replace("_", "-") for name in NAMES}, **OTHERS}
NAME = "|".join(sorted(OPTIONS, key=len, reverse=True))
PLAIN = "|".join(("nfe", *(name for name in OPTIONS if "_" in name)))  # words that are no English ones
RULES = re.compile(
    rf"(?<![\w-])(?:{NAME})=(?:\{{[^}}]*\}})? ?\((?P<option>--[^)]*)\)"  # both are said
    rf"|(?<![\w-])(?P<given>{NAME})='(?P<text>[^']*)'"
    rf"|(?<![\w-])(?P<number>{NAME})=(?P<value>[\w.-]+)"
    rf"|(?<![\w-])(?P<open>{NAME})=(?=$|[\s,;.)])"
    rf"|contract: (?P<field>{NAME})(?= )"
    rf"|(?<![\w'-])(?P<plain>{PLAIN})(?![\w'=-])"
    r"|(?<!\w)'[^']*'"
)


def as_typed(message: str) -> str:
    """The message with options in the place of Python's arguments."""
    return RULES.sub(_option, message)


def _option(found: re.Match[str]) -> str:
    if found["option"]:
        return found["option"]
    if found["given"]:
        return f"{OPTIONS[found['given']]} {found['text']}"
    if found["number"]:
        return f"{OPTIONS[found['number']]} {found['value']}"
    name = found["open"] or found["field"] or found["plain"]
    return OPTIONS[name] if name else found[0]
