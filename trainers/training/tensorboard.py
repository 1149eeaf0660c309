"""The events of a run as TensorBoard files, for people who compare runs there. Needs the package `tensorboard`."""
from pathlib import Path

import numpy as np
from PIL import Image


class Board:
    """An `emit` that hands every event on and writes those that have a place in TensorBoard. After a resume the steps that
    are done again replace their first try."""

    def __init__(self, emit, folder: Path):
        self.emit, self.folder, self.first_step, self.writer = emit, folder, None, None

    def __call__(self, event: str, **fields):
        self.emit(event, **fields)
        if event == "resumed":
            self.first_step = fields["step"] + 1
        elif event in ("step", "validation", "preview"):
            self.writer = self.writer or self._open()
            getattr(self, f"_{event}")(fields["step"], fields)

    def _open(self):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=self.first_step)

    def _step(self, step: int, fields: dict):
        self.writer.add_scalar("loss/training", fields["loss"], step)
        self.writer.add_scalar("gradient norm", fields["gradient_norm"], step)
        for group, rate in fields["learning_rates"].items():
            self.writer.add_scalar(f"learning rate/{group}", rate, step)

    def _validation(self, step: int, fields: dict):
        self.writer.add_scalar("loss/validation", fields["loss"], step)

    def _preview(self, step: int, fields: dict):
        with Image.open(fields["path"]) as sheet:
            self.writer.add_image("previews", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def close(self):
        if self.writer:
            self.writer.close()
