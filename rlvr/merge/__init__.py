"""Merging: the weights of models of one architecture made into the weights of one model, without training.

`operators` are the formulas, `coefficients` what each tensor is merged with, `models` what is read and whether it fits
together, `merging` writes the folder.
"""

from rlvr.merge.merging import merge

__all__ = ["merge"]
