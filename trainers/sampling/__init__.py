"""Images made with a model: previews of a run, and class images."""
