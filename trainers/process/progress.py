"""How far a whole task has come, as one number from 0 to 1 that only rises."""
from typing import Mapping


class Progress:
    """An `emit` that hands every event on with "progress", the share of the task that is done by then.

    `stages` are the parts of the task in their order, each with its weight: about the share of the time that it takes. What
    is left out, because it lies in a cache, is jumped over.
    """

    def __init__(self, emit, stages: Mapping[str, float]):
        self.emit, self.reached = emit, 0.0
        self.spans, before, whole = {}, 0.0, sum(stages.values())
        for name, weight in stages.items():
            self.spans[name] = (before / whole, weight / whole)
            before += weight

    def __call__(self, event: str, **fields):
        stage, done, total = place_of(event, fields)
        if stage in self.spans:
            start, share = self.spans[stage]
            self.reached = max(self.reached, start + share * min(1.0, done / max(1, total)))
        self.reached = 1.0 if event == "finished" else self.reached
        self.emit(event, **fields, progress=round(self.reached, 4))


def place_of(event: str, fields: Mapping) -> tuple[str, int, int]:
    """The stage that an event belongs to, and how much of it is done, out of how much; no stage for those that tell nothing
    of the way."""
    if event in ("step", "resumed"):
        return "steps", fields["step"], fields["total"]
    stage = {"encoding": fields.get("what"), "drawing": "drawing", "captioned": "describing",
             "working": fields.get("text")}.get(event, fields.get("stage", ""))
    return stage, fields.get("done", 0), fields.get("total", 1)
