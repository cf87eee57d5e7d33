"""A network in fewer bits: half precision of any ONNX file, eight bits calibrated on the engine's own trajectories.

write.py           `network.onnx` of any source in any precision
auto.py            the fastest precision here whose error stays within the bound
trajectory.py      the inputs that an engine's programs feed its network; errors of whole samples
tasks.py           what a graph is for: samples of a network, pictures of a decoder
prompts.py         prompts that a pipeline is calibrated with, encoded by its own text encoders
encoders.py        text encoders and the image encoder in int8, by what their errors do
float32_parts.py   what stays float32 in a half-precision graph, by rule
half.py            float32 graph -> fp16 or bf16 graph, compared with it layer by layer
layers.py          convolutions and linear layers that can be quantised, and what they read
observe.py         values of a graph's tensors on given inputs
ranges.py          scale and zero point of a tensor
insert.py          Q/DQ nodes around layers; also with a switch for each layer, to measure with
give_back.py       which layers return to float until the error of samples is within a bound
quantise.py        a float32 graph becomes an int8 or fp8 one, with a record
inside.py          what a Q/DQ file holds, and whether its scales make sense
speed.py           how fast a network.onnx is on this CPU
records.py         what an engine remembers of its precision
"""
