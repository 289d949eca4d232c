"""Labels of anchors, found without looking at those far from every object.

select.py says which file does it for a detector; all take ``Images`` and give ``Labeled``.
"""
