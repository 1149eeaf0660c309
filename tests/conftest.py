"""Let tests import the modules of `scripts/`.

The repository's root must stay off `sys.path`: its `nodes` package would hide ComfyUI's module of that name.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
