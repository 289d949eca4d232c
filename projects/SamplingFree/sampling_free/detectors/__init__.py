"""Detectron2's detectors made sampling-free, and ATSS and PAA."""
