"""What the method is compared with, as published: OHEM and GHM-C in Detectron2's detectors."""
