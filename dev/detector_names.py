"""What a detector is called in a table, by how the names of its configs begin."""

DETECTORS = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "atss": "ATSS",
    "paa": "PAA",
}
