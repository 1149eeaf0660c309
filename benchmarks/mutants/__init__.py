"""Changes of the pack that a test must notice, each as a real fault would look: a sign, a step forgotten, an argument that
nobody reads. One file per part of the pack."""
from . import data, files, foreign, host, methods, numbers, training
from .mutation import Mutation

ALL: list[Mutation] = [each for part in (training, numbers, methods, data, files, foreign, host) for each in part.MUTATIONS]
