"""Sampling-free PAA: ATSS with another assignment, IoU prediction and score voting."""

from sampling_free import SamplingFreePAA

from .atss import model

model._target_ = SamplingFreePAA
