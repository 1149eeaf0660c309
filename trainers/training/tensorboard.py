"""The events of a run as TensorBoard files, for people who compare runs there. Needs the package `tensorboard`."""
from pathlib import Path

import numpy as np
from PIL import Image

from ..events import Emit, Event, PreviewEvent, ResumedEvent, StepEvent, ValidationEvent


class Board:
    """An `emit` that hands every event on and writes those that have a place in TensorBoard. After a resume the steps that
    are done again replace their first try."""

    def __init__(self, emit: Emit, folder: Path):
        self.emit, self.folder, self.first_step, self.opened = emit, folder, None, None

    def __call__(self, event: Event):
        self.emit(event)
        if isinstance(event, ResumedEvent):
            self.first_step = event.step + 1
        elif isinstance(event, StepEvent):
            self.writer.add_scalar("loss/training", event.loss, event.step)
            self.writer.add_scalar("gradient norm", event.gradient_norm, event.step)
            for group, rate in event.learning_rates.items():
                self.writer.add_scalar(f"learning rate/{group}", rate, event.step)
        elif isinstance(event, ValidationEvent):
            self.writer.add_scalar("loss/validation", event.loss, event.step)
        elif isinstance(event, PreviewEvent):
            with Image.open(event.path) as sheet:
                self.writer.add_image("previews", np.asarray(sheet.convert("RGB")), event.step, dataformats="HWC")

    @property
    def writer(self):
        """Opened by the first event that has a place there, after it is known where the run goes on."""
        if self.opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self.opened = SummaryWriter(str(self.folder), purge_step=self.first_step)
        return self.opened

    def close(self):
        if self.opened:
            self.opened.close()
