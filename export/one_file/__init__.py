"""The whole sampler of an engine as one ONNX file, and as models of a Triton Inference Server."""
