"""Files made out of files: extraction, merging, conversion, baking, ONNX."""
