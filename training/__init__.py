"""Training of the matting network: data, model, losses, loop, evaluation, export.

Nothing that a user runs imports this package; it hands over files (an ONNX graph and a JSON card).
Read in this order: `data.py`, `model.py`, `losses.py`, `train.py`, `evaluate.py`, `export.py`.
"""

from engines.machine import calm_openmp

calm_openmp()  # before any module here imports torch
