"""Side by side with peers: each module measures one thing and runs as `python -m benchmarks.<name>`."""
import os

# Everything that is measured here was made here: a look at a model hub would only cost time.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
