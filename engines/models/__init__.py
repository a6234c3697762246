"""The shipped models, data only: NAME.onnx (the network), NAME.json (its card, read by `engines.spec`) and
NAME.md (the same for people: data and its terms, figures, limits, how to reproduce). `training.export` writes them.
"""
