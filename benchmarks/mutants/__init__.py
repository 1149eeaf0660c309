"""Changes of the pack that a test must notice, each as a real fault would look: a sign, a step forgotten, an argument that
nobody reads. One file per part of the pack."""
from . import (
    data,
    files,
    flow_models,
    folders,
    foreign,
    host,
    methods,
    models,
    names,
    numbers,
    page,
    stopping,
    text_encoders,
    training,
)
from .mutation import Mutation

PARTS = (
    training, numbers, methods, data, files, foreign, folders, models, flow_models, text_encoders, names, stopping,
    page, host,
)
ALL: list[Mutation] = [each for part in PARTS for each in part.MUTATIONS]
