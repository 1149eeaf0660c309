"""How far a whole task has come, as one number from 0 to 1 that only rises."""
from collections.abc import Mapping

from ..events import Emit, Event, FinishedEvent


class Progress:
    """An `emit` that hands every event on with "progress", the fraction of the task that is done by then.

    `stages` are the parts of the task in their order, each with its weight: about the fraction of the time it takes. What
    is left out, because it lies in a cache, is jumped over.
    """

    def __init__(self, emit: Emit, stages: Mapping[str, float]):
        self.emit, self.reached = emit, 0.0
        self.spans, before, whole = {}, 0.0, sum(stages.values())
        for name, weight in stages.items():
            self.spans[name] = (before / whole, weight / whole)
            before += weight

    def __call__(self, event: Event):
        stage, done, total = event.stage_done()
        if stage in self.spans:
            start, fraction = self.spans[stage]
            self.reached = max(self.reached, start + fraction * min(1.0, done / max(1, total)))
        self.reached = 1.0 if isinstance(event, FinishedEvent) else self.reached
        self.emit(event.model_copy(update={"progress": round(self.reached, 4)}))
