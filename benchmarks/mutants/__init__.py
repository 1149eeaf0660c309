"""Changes of the pack that a test must notice, each as a real fault would look: a sign, a step forgotten, an argument that
nobody reads. One file per part of the pack."""
from . import data, files, methods, numbers, training
from .mutation import Mutation

ALL: list[Mutation] = [*training.MUTATIONS, *numbers.MUTATIONS, *methods.MUTATIONS, *data.MUTATIONS, *files.MUTATIONS]
