"""How every benchmark ends: full numbers in a file, one JSON object as the last line."""
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def finish(name: str, results: list[dict], details: dict):
    """`results`: {"measure", "value", "unit", "goal", "met"} each; `details`: whatever explains them."""
    RESULTS.mkdir(exist_ok=True)
    content = {"name": name, "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps({**content, "details": details}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content), flush=True)
