"""OHEM in slow, literal loops, from its paper."""


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(areas) - both)


def hardest_by_loops(losses, boxes, num, nms_thresh):
    """Indices by the definition: the hardest first, and none that overlaps a harder one."""
    losses, boxes = losses.tolist(), boxes.double().tolist()
    chosen = []
    for i in sorted(range(len(losses)), key=lambda i: (-losses[i], i)):
        if len(chosen) < num and all(iou(boxes[i], boxes[j]) <= nms_thresh for j in chosen):
            chosen.append(i)
    return chosen
