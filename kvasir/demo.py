"""The embedded demo model: what is served when no model is named."""

from importlib.resources import files
from pathlib import Path

DEMO_MODEL_NAME = "kvasir-demo"


def demo_model_path() -> Path:
    """The demo checkpoint's directory inside the installed package."""
    return Path(str(files("kvasir") / "demo_model"))
