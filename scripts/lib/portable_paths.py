"""Paths in a recorded report: those of the repository relative to it, any other by its last part."""
import re


def portable(value, root):
    """`value` with every string in it, and in the lists and objects in it, made so."""
    if isinstance(value, dict):
        return {key: portable(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, root) for item in value]
    if not isinstance(value, str):
        return value
    value = value.replace(f"{root}/", "")
    return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+([\w.+-]+)", r"\1", value)
